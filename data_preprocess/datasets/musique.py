"""MuSiQue (Trivedi et al., 2022), Ans and Full: JSON lines. In Full each id stands twice, once answerable and once not."""

from __future__ import annotations

import re
from typing import Any

from data_preprocess.datasets.paragraphs import Paragraph, records
from research_rl.questions import Dropped, Question

_ID = re.compile(r"(\d)hop\d*(?=__)")


def question(row: dict[str, Any]) -> Question:
    """Read one row. `type` is the shape of the decomposition as the id has it ("2hop", "3hop1", …)."""
    if row.get("answerable") is False:
        raise Dropped("unanswerable")  # from its own paragraphs; with a whole corpus it repeats the answerable question
    if row.get("answer") is None:
        raise Dropped("no answer")  # the test set
    shape = _ID.match(str(row["id"]))
    return Question(
        str(row["id"]),
        row["question"],
        (row["answer"], *(row.get("answer_aliases") or ())),
        type=shape.group() if shape else "",
        hops=int(shape.group(1)) if shape else len(row.get("question_decomposition") or ()),
        supporting_titles=tuple(paragraph.title for paragraph in paragraphs(row) if paragraph.supporting),
    )


def paragraphs(row: dict[str, Any]) -> list[Paragraph]:
    """Read the paragraphs of one row; each says itself whether it supports."""
    return [
        Paragraph(found["title"], found["paragraph_text"], bool(found.get("is_supporting")))
        for found in records(row.get("paragraphs"))
    ]
