"""Bamboogle (Press et al., 2023): 125 two-hop questions in a table of Question and Answer, without ids."""

from __future__ import annotations

from typing import Any

from research_rl.questions import Question


def question(row: dict[str, Any]) -> Question:
    """Read one row."""
    fields = {name.strip().lower(): value for name, value in row.items()}
    return Question(str(fields.get("id", "")), fields["question"], (fields["answer"],), hops=2)
