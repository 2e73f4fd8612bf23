"""Summarises recorded trajectories: means per part and step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_METRICS = ("em", "f1", "searches", "retrieval_rate", "well_formed", "score")


def mean_metrics(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means over records, and their number `n`. Records without a metric are an error, not a gap."""
    rows = [record["metrics"] for record in records]
    if not rows:
        return {"n": 0}
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in _METRICS} | {"n": len(rows)}


TRAINING = "train"


def part_of(record: Mapping[str, Any]) -> str:
    """Return `TRAINING` for training records, else the split that was measured. (The split of training data may have any name.)"""
    return record["split"] if record["validate"] else TRAINING


def by_step(records: Iterable[Mapping[str, Any]], part: str) -> dict[int, list[Mapping[str, Any]]]:
    """Group the records of one part (see `part_of`) by training step, in order."""
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if part_of(record) == part:
            groups[record["step"]].append(record)
    return dict(sorted(groups.items()))


def em_by_type(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return exact match before and after, and the number of questions, for each type of question."""
    types = sorted({record.get("type", "") for record in [*before, *after]} - {""})
    table = {}
    for name in types:
        parts = [mean_metrics(record for record in records if record.get("type") == name) for records in (before, after)]
        table[name] = {"before": parts[0].get("em", 0.0), "after": parts[1].get("em", 0.0), "n": parts[1]["n"]}
    return table


def summarize(records: Sequence[Mapping[str, Any]], last_step: int) -> dict[str, Any]:
    """Return the figures before and after training, for test questions and control, and the curves over training steps.

    The step of a training record is the step whose batch it belongs to; test records of step 0 belong to the starting model.
    """
    summary: dict[str, Any] = {}
    for split in ("test", "control"):
        groups = by_step(records, split)
        before, after = groups.get(0, []), groups.get(last_step, [])
        summary[split] = {"before": mean_metrics(before), "after": mean_metrics(after), "em_by_type": em_by_type(before, after)}
    summary["steps"] = [
        {"step": step, "stage": rows[0].get("stage", ""), **mean_metrics(rows)}
        for step, rows in by_step(records, TRAINING).items()
    ]
    return summary
