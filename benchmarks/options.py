"""``python -m benchmarks.options --out DIR``: the quickstart with algorithm options, one after the other: what do they cost and gain?

Each is a run of its own in DIR/NAME; what is done is not run again. Writes DIR/options.json and DIR/options.svg, and prints a table:
seconds per step (median from the third step on), EM of the training rollouts in the first and in the last five steps, and EM on the test
questions before and after. Training rollouts count for the step that they were begun in; in asynchronous runs two batches are begun in the
first one.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.variants import TWO, Variant, arguments, curves, directory, run, write_svg
from research_rl.cpu import hardware
from research_rl.training.metric_files import logged
from research_rl.web.page import subplots

VARIANTS = {
    "sync": Variant(),
    "dynamic_sampling": Variant(("+algorithm_option=[dynamic_sampling]",)),
    "colocate_async": Variant(("+algorithm_option=[colocate_async]",)),
    "separate_async": Variant(("+algorithm_option=[separate_async]",)),
    "sync, two updates": Variant((TWO,)),
    "gspo, two updates": Variant((TWO, "+algorithm_option=[gspo]")),  # its ratio is 1 at the first update of a batch
}


def figures(run_dir: Path) -> dict[str, Any]:
    """Return a run's curves, and the figures of the table."""
    steps = [data for row in logged(run_dir) if "timing_s/step" in (data := row["data"])]
    em = curves(run_dir)["em"]
    measured = json.loads((run_dir / "summary.json").read_text())
    return {
        "em": em,
        "seconds_per_step": statistics.median(line["timing_s/step"] for line in steps[2:]),
        "first_five": statistics.mean(em[:5]),
        "last_five": statistics.mean(em[-5:]),
        "staleness": max(line.get("training/off_policy/trajectory_staleness_worst/max", 0) for line in steps),
        "summary": measured,
    }


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw EM of the training rollouts by step, as the mean of five steps."""
    figure, (axis,) = subplots(1, 7, 4)
    for name, row in found.items():
        values = row["em"]
        means = [statistics.mean(values[max(0, end - 5) : end]) for end in range(1, len(values) + 1)]
        axis.plot(range(1, len(means) + 1), means, label=name, linewidth=1.3)
    axis.set(xlabel="step", ylabel="EM of the training rollouts (mean of 5 steps)", ylim=(0, 1))
    axis.legend(fontsize=7)
    write_svg(figure, "EM of the training rollouts by step, for algorithm options", path)


def main() -> None:
    """Run, and write."""
    options = arguments(__doc__, VARIANTS, steps=24, port=18_900)
    for name in options.only:
        print(f"== {name}", flush=True)
        run_dir = directory(name, options.out)
        run(VARIANTS[name], run_dir, options.steps, options.port, questions=200)
        ended = run_dir / "ended.json"
        if json.loads(ended.read_text())["exit_code"]:
            ended.unlink()  # to be run again
            raise SystemExit(f"{name} failed; {run_dir / 'train.log'} says why")
    done = [name for name in VARIANTS if (directory(name, options.out) / "summary.json").is_file()]
    found = {name: figures(directory(name, options.out)) for name in done}
    (options.out / "options.json").write_text(json.dumps({"hardware": hardware(), **found}, indent=1))
    plot(found, options.out / "options.svg")
    for name, row in found.items():
        before, after = (row["summary"]["test"][when]["em"] for when in ("before", "after"))
        trained, tested = f"{row['first_five']:.2f} -> {row['last_five']:.2f}", f"{before:.3f} -> {after:.3f}"
        print(f"{name:18} {row['seconds_per_step']:6.1f} s  training {trained}  test {tested}")


if __name__ == "__main__":
    main()
