"""2WikiMultiHopQA (Ho et al., 2020): HotpotQA's layout with evidence triples; aliases are in a file of their own (`--aliases`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_preprocess.datasets.hotpotqa import supporting_titles
from data_preprocess.sources import Row, read_rows
from research_rl.errors import DataError
from research_rl.questions import Dropped, Question


def question(row: dict[str, Any]) -> Question:
    """Read one row. A bridge comparison takes four facts, every other type two."""
    if row.get("answer") is None:
        raise Dropped("no answer")  # the test set
    kind = row.get("type") or ""
    return Question(
        str(row["_id"] if "_id" in row else row["id"]),
        row["question"],
        (row["answer"],),
        type=kind,
        hops=4 if kind == "bridge_comparison" else 2,
        supporting_titles=supporting_titles(row.get("supporting_facts")),
        answer_id=row.get("answer_id") or "",
    )


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """Return aliases and demonyms by entity of `id_aliases.json`: lines of ``{"Q_id", "aliases", "demonyms"}``.

    Raises:
        DataError: a line is malformed.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in read_rows(str(path)):
        if not isinstance(row, Row) or not isinstance(row.fields.get("Q_id"), str):
            what = row.reason if not isinstance(row, Row) else json.dumps(row.fields)[:100]
            raise DataError(f"{row.where}: expected Q_id, aliases and demonyms, got {what}")
        found[row.fields["Q_id"]] = (*row.fields.get("aliases", ()), *row.fields.get("demonyms", ()))
    return found
