"""PopQA (Mallen et al., 2023): a TSV file; the answers are a JSON list in one column; `type` is the property asked for."""

from __future__ import annotations

import json
from typing import Any

from research_rl.questions import Question


def question(row: dict[str, Any]) -> Question:
    """Read one row."""
    answers = row["possible_answers"]
    answers = json.loads(answers) if isinstance(answers, str) else answers
    if not isinstance(answers, list):
        raise ValueError(f"possible_answers must be a JSON list, got {answers!r}")
    titles = (row["s_wiki_title"],) if row.get("s_wiki_title") else ()
    return Question(
        str(row["id"]), row["question"], tuple(answers), type=row.get("prop") or "", hops=1, supporting_titles=titles
    )
