"""report.html: one self-contained page with curves, the before/after table, and trajectories told apart by who wrote them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.summary import by_step
from research_rl.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"
_METRICS = {
    "em": "Exact match",
    "f1": "F1",
    "searches": "Searches per question",
    "well_formed": "Well-formed",
    "score": "Reward",
}


def write_report(
    path: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], last_step: int, examples: int = 12
) -> None:
    """Write the page; `examples` questions are shown, before and after side by side."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        summary=summary, metrics=_METRICS, pairs=_pairs(records, last_step, examples), curves=_curves(summary["steps"]),
    )  # fmt: skip
    write_text(path, page)


def _pairs(
    records: Sequence[Mapping[str, Any]], last_step: int, count: int
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Choose test questions evenly: of those mended by training, those right in both, those lost, those wrong in both."""
    groups = by_step(records, "test")
    before = {record["question"]: record for record in groups.get(0, [])}
    after = {record["question"]: record for record in groups.get(last_step, [])}
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


def _curves(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the training curves as inline SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "research-rl"  # the same figures give the same file
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), constrained_layout=True)
    for axis, (name, label) in zip(axes, [(k, v) for k, v in _METRICS.items() if k != "f1"], strict=True):
        axis.plot([row["step"] for row in steps], [row.get(name) for row in steps], color="#2563eb", marker="o", markersize=3)
        axis.set(title=f"{label}, training rollouts", xlabel="step")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
