"""HotpotQA (Yang et al., 2018), distractor and fullwiki: a JSON array; on the hub the facts are columns, not pairs."""

from __future__ import annotations

from typing import Any

from data_preprocess.datasets.paragraphs import Paragraph, titled
from research_rl.questions import Dropped, Question, clean


def supporting_titles(facts: Any) -> tuple[str, ...]:
    """Return the titles of ``[[title, sentence], …]`` or ``{"title": [title, …], "sent_id": [sentence, …]}``."""
    return tuple(title for title, _ in titled(facts))


def question(row: dict[str, Any]) -> Question:
    """Read one row; every question takes two facts."""
    if row.get("answer") is None:
        raise Dropped("no answer")  # the fullwiki test set
    return Question(
        str(row["_id"] if "_id" in row else row["id"]),
        row["question"],
        (row["answer"],),
        type=row.get("type") or "",
        hops=2,
        level=row.get("level") or "",
        supporting_titles=supporting_titles(row.get("supporting_facts")),
    )


def paragraphs(row: dict[str, Any]) -> list[Paragraph]:
    """Read ``[[title, [sentence, …]], …]`` or ``{"title": [title, …], "sentences": [[sentence, …], …]}``; a text may also be one string.

    What supports is named by title in `supporting_facts`.
    """
    named = {clean(title) for title in supporting_titles(row.get("supporting_facts"))}
    return [
        Paragraph(title, text if isinstance(text, str) else " ".join(text), clean(title) in named)
        for title, text in titled(row.get("context"))
    ]
