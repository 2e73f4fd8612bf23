"""StrategyQA (Geva et al., 2021): a JSON array; the answer is a truth value, the evidence names paragraphs as "Title-number"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from research_rl.questions import Dropped, Question

_PARAGRAPH = re.compile(r"(.+)-\d+")


def _texts(nested: Any) -> Iterator[str]:
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, list):
        for item in nested:
            yield from _texts(item)


def question(row: dict[str, Any]) -> Question:
    """Read one row; of the evidence, all annotators' paragraphs count ("no_evidence" and "operation" name none)."""
    answer = row.get("answer")
    if answer is None:
        raise Dropped("no answer")  # the test set
    if not isinstance(answer, bool):
        raise ValueError(f"answer must be true or false, got {answer!r}")
    titles = (match.group(1) for text in _texts(row.get("evidence")) if (match := _PARAGRAPH.fullmatch(text)))
    return Question(
        str(row["qid"]),
        row["question"],
        ("yes" if answer else "no",),
        hops=len(row.get("decomposition") or ()),
        supporting_titles=tuple(titles),
    )
