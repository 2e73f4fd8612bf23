"""report.html: one self-contained page with curves, the before/after table, and trajectories that mark who wrote what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from evaluation.summary import by_step
from research_rl.files import write_text
from research_rl.web.page import render, subplots, svg

METRICS = {
    "em": "Exact match",
    "f1": "F1",
    "searches": "Searches per question",
    "retrieval_rate": "Questions searched for",
    "well_formed": "Well-formed",
    "score": "Reward",
}


def write_report(
    path: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], last_step: int, examples: int = 12
) -> None:
    """Write the page; `examples` questions are shown, before and after side by side."""
    groups = by_step(records, "test")
    pairs = choose_pairs(groups.get(0, []), groups.get(last_step, []), examples)
    write_text(path, render("report.html.j2", summary=summary, metrics=METRICS, pairs=pairs, curves=curves(summary["steps"])))


def choose_pairs(
    before_all: Sequence[Mapping[str, Any]], after_all: Sequence[Mapping[str, Any]], count: int
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Choose questions evenly from those that only the trained model gets right, those right in both, those lost, those wrong in both."""
    before = {record["question"]: record for record in before_all}
    after = {record["question"]: record for record in after_all}
    kinds: dict[tuple[bool, bool], list] = {(False, True): [], (True, True): [], (True, False): [], (False, False): []}
    for question in sorted(before.keys() & after.keys()):
        pair = (before[question], after[question])
        kinds[bool(pair[0]["metrics"]["em"]), bool(pair[1]["metrics"]["em"])].append(pair)
    chosen: list = []
    while len(chosen) < count and any(kinds.values()):
        for pairs in kinds.values():
            if pairs and len(chosen) < count:
                chosen.append(pairs.pop(0))
    return chosen


def curves(steps: Sequence[Mapping[str, Any]], left_out: str = "f1") -> str:
    """Return the training curves as inline SVG, of every metric but one."""
    shown = [(name, label) for name, label in METRICS.items() if name != left_out]
    figure, axes = subplots(len(shown), 3.5 * len(shown), 3.2)
    for axis, (name, label) in zip(axes, shown, strict=True):
        axis.plot([row["step"] for row in steps], [row.get(name) for row in steps], color="#2563eb", marker="o", markersize=3)
        axis.set(title=label, xlabel="step")
        axis.grid(alpha=0.3)
        for last, first in pairwise(steps):
            if last["stage"] != first["stage"]:
                axis.axvline((last["step"] + first["step"]) / 2, color="#9ca3af", linestyle="--")
        axis.set_ylim(bottom=0)
    return svg(figure)
