"""FlashRAG's form: ``{"id", "question", "golden_answers", "metadata"}``; type, level, hops and facts are kept."""

from __future__ import annotations

from typing import Any

from data_preprocess.datasets.hotpotqa import supporting_titles
from research_rl.questions import Dropped, Question


def question(row: dict[str, Any]) -> Question:
    """Read one row; fields beside `metadata` count as metadata."""
    metadata = {**row, **(row.get("metadata") or {})}
    golden = row["golden_answers"]
    if not golden:
        raise Dropped("no answer")
    facts = metadata.get("supporting_facts")
    return Question(
        str(row["id"]),
        row["question"],
        (golden,) if isinstance(golden, str) else tuple(golden),
        type=str(metadata.get("type") or ""),
        hops=int(metadata.get("hops") or len(metadata.get("question_decomposition") or ())),
        level=str(metadata.get("level") or ""),
        supporting_titles=tuple(metadata.get("supporting_titles") or ()) or supporting_titles(facts),
        supporting_ids=tuple(metadata.get("supporting_ids") or ()),
        data_source=str(metadata.get("data_source") or ""),
        difficulty=str(metadata.get("difficulty") or ""),
    )
