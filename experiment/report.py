"""report.html of an experiment: conditions per set, what the queries find, training curves, and trajectories before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report import choose_pairs, curves
from experiment.summary import of_set, records
from research_rl.files import write_text
from research_rl.web.page import render, subplots, svg

PARTS = {
    "gen": "rollouts",
    "old_log_prob": "log-probabilities",
    "update_actor": "update",
    "update_weights": "weights to the engine",
    "save_checkpoint": "checkpoint",
}
COLOURS = ("#2563eb", "#f59e0b", "#16a34a", "#9333ea", "#dc2626", "#9ca3af")


def write_report(path: Path, summary: Mapping[str, Any], run_dir: Path, examples: int = 10) -> None:
    """Write the page; `examples` questions are shown, before and after side by side, spread evenly over the sets."""
    measured = records(run_dir / "measured")
    models = [name for name in ("start", "trained") if name in measured]
    pairs = []
    if len(models) == 2:
        for number, name in enumerate(summary["sets"]):
            share = examples // len(summary["sets"]) + (number < examples % len(summary["sets"]))
            found = of_set(measured, name)
            pairs += choose_pairs(found["start"], found["trained"], share)
    steps = summary.get("steps", [])
    page = render(
        "experiment.html.j2", summary=summary, models=models, pairs=pairs, rows=rows,
        curves=curves(steps, left_out="retrieval_rate") if steps else "", parts=step_parts(summary["step_seconds"]) if steps else "",
    )  # fmt: skip  # many arguments
    write_text(path, page)


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (label, figures) of a set's conditions, in the order of the table."""
    for name, label in (("start", "start"), ("trained", "trained")):
        if name in found:
            yield label, found[name]
    for kind in ("control", "baseline"):
        for name, figures in found[f"{kind}s"].items():
            yield f"{kind}: {name.replace('_', ' ')}", figures


def step_parts(steps: Sequence[Mapping[str, float]]) -> str:
    """Return the seconds of every step's parts as stacked bars, as inline SVG."""
    figure, (axis,) = subplots(1, 10, 3.2)
    numbers = [row["number"] for row in steps]
    bottom = [0.0] * len(steps)
    named = [(label, [row.get(name, 0.0) for row in steps]) for name, label in PARTS.items()]
    # time that verl attributes to no part: waiting for the last rollouts, moving data
    rest = [max(0.0, row["step"] - sum(values[i] for _, values in named)) for i, row in enumerate(steps)]
    for (label, values), colour in zip([*named, ("rest", rest)], COLOURS, strict=True):
        axis.bar(numbers, values, bottom=bottom, label=label, color=colour)
        bottom = [under + value for under, value in zip(bottom, values, strict=True)]
    axis.set(xlabel="step", ylabel="seconds")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return svg(figure)
