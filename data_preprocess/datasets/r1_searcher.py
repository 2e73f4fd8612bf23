"""R1-Searcher's training files: `idx`, `question`, `answer` (a text or a list); they do not say which data set a row comes from."""

from __future__ import annotations

from typing import Any

from research_rl.questions import Question


def question(row: dict[str, Any]) -> Question:
    """Read one row."""
    answer = row["answer"]
    return Question(str(row["idx"]), row["question"], (answer,) if isinstance(answer, str) else tuple(answer))
