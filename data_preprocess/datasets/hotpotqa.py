"""HotpotQA (Yang et al., 2018), distractor and fullwiki: a JSON array; on the hub the facts are columns, not pairs."""

from __future__ import annotations

from typing import Any

from research_rl.questions import Dropped, Question


def supporting_titles(facts: Any) -> tuple[str, ...]:
    """Return the titles of ``[[title, sentence], …]`` or ``{"title": [title, …]}``."""
    if isinstance(facts, dict):
        return tuple(facts["title"])
    return tuple(title for title, _ in facts or ())


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
