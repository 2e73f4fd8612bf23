"""``python benchmarks/collapse.py --out DIR``: does the health of a run tell a collapse before the reward does, and is it silent otherwise?

Runs the quickstart as it is and with two updates per batch; with a learning rate 30 times too high, at once (with the default rules, and
with one that rolls back) and reached in 40 steps (as it is, with LLDS, with clip-higher); and with a reward that pays for every word of an
answer. Each is a run of its own in DIR/NAME; what is done is not run again. Writes DIR/collapse.json and DIR/collapse.svg.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import start_model
from research_rl.training.trajectory_log import read


@dataclass(frozen=True)
class Variant:
    """What a run of the quickstart changes: overrides, seed, and the habits of the model it starts from (None: the one that is shipped)."""

    overrides: tuple[str, ...] = ()
    seed: int = 1
    habits: str | None = None


LR = "actor_rollout_ref.actor.optim.lr=9e-3"
TWO = "actor_rollout_ref.actor.ppo_mini_batch_size=8"  # updates per batch: LLDS and the clip range have no effect on the first
PAYS = "research_rl.method=benchmarks.stuffing.PaysForWords"
BROKEN = "research_rl.health.rules.broken"
SLOWLY = (LR, "actor_rollout_ref.actor.optim.lr_warmup_steps=40", TWO, f"{BROKEN}.action=warn")  # reached step by step
VARIANTS = {
    **{f"seed {seed}": Variant(seed=seed) for seed in (1, 2, 3)},
    **{f"two updates, seed {seed}": Variant((TWO,), seed) for seed in (1, 2)},
    "lr x 30": Variant((LR,)),
    "lr x 30, rolled back": Variant(
        (LR, f"{BROKEN}.action=rollback", "research_rl.health.rollback.lr_factor=0.03", "trainer.save_freq=1")
    ),
    "lr x 30 by warm-up": Variant(SLOWLY),
    **{f"lr x 30 by warm-up, seed {seed}": Variant(SLOWLY, seed) for seed in (2, 3)},
    "lr x 30 by warm-up, LLDS": Variant((*SLOWLY, "actor_rollout_ref.actor.policy_loss.loss_mode=llds")),
    "lr x 30 by warm-up, clip-higher": Variant((*SLOWLY, "actor_rollout_ref.actor.clip_ratio_high=0.28")),
    # at the recipe's learning rate this takes four steps
    "pays for words": Variant((PAYS, "actor_rollout_ref.actor.optim.lr=1e-4"), habits="hedging"),
}


def directory(name: str, out: Path) -> Path:
    """Return a variant's run directory."""
    return out / name.replace(" ", "_").replace(",", "")


def run(variant: Variant, run_dir: Path, steps: int, port: int, questions: int = 40) -> None:
    """Run one variant, unless it has ended."""
    if (run_dir / "ended.json").is_file():
        return
    command = [
        sys.executable, "-m", "quickstart", "--run-dir", str(run_dir), "--seed", str(variant.seed), "--steps", str(steps),
        "--port", str(port), "--test-questions", str(questions), *variant.overrides,
    ]  # fmt: skip
    if variant.habits:
        command.append(f"actor_rollout_ref.model.path={start_model(run_dir.parent, variant.habits)}")
    code = subprocess.run(command, check=False).returncode
    if not run_dir.is_dir():
        raise SystemExit(f"{run_dir.name} could not start; what is done is kept")
    (run_dir / "ended.json").write_text(json.dumps({"exit_code": code}))


def curves(run_dir: Path) -> dict[str, list[float]]:
    """Return the mean score and EM of a run's training rollouts, by step."""
    rows: dict[int, list[dict[str, float]]] = defaultdict(list)
    for record in read(run_dir / "trajectories"):
        if not record["validate"]:
            rows[record["step"]].append(record["metrics"])
    return {
        metric: [sum(row[metric] for row in rows[step]) / len(rows[step]) for step in sorted(rows)]
        for metric in ("score", "em")
    }


def figures(name: str, out: Path) -> dict[str, Any]:
    """Return a run's mean reward and EM by step, its alarms, and when either had lost half of its best mean of five steps."""
    run_dir = directory(name, out)
    found = curves(run_dir)
    log = run_dir / "health.jsonl"
    alarms = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    lost = {metric: half_lost(values) for metric, values in found.items()}
    first = min((alarm["step"] for alarm in alarms), default=None)
    at = min((step for step in lost.values() if step), default=None)
    return {
        "curves": found, "alarms": [{key: alarm[key] for key in ("step", "rule", "action") if key in alarm} for alarm in alarms],
        "first_alarm": first, "half_lost": lost, "steps_before": at - first if at and first else None,
        "exit_code": json.loads((run_dir / "ended.json").read_text())["exit_code"],
    }  # fmt: skip


def half_lost(values: list[float], window: int = 5) -> int | None:
    """Return the step from 1 at which the mean of five steps is first below half of the best such mean before; None if it never is."""
    best = 0.0
    for end in range(window, len(values) + 1):
        mean = sum(values[end - window : end]) / window
        if mean < best / 2:
            return end
        best = max(best, mean)
    return None


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw EM by step for every run, a mark at its first alarm."""
    from research_rl.web.page import subplots, svg

    panels = [[name for name in found if name.startswith(kinds)] for kinds in (("seed", "two", "pays"), "lr")]
    shown = [names for names in panels if names]
    figure, axes = subplots(len(shown), 5.5 * len(shown), 4)
    for axis, names in zip(axes, shown, strict=True):
        for name in names:
            values = found[name]["curves"]["em"]
            (line,) = axis.plot(range(1, len(values) + 1), values, label=name, linewidth=1.3)
            if first := found[name]["first_alarm"]:
                axis.axvline(first, color=line.get_color(), linestyle=":", linewidth=1)
        axis.set(xlabel="step", ylabel="EM of the training rollouts", ylim=(0, 1))
        axis.legend(fontsize=7)
    title = "<title>EM of the training rollouts by step; dotted: the first alarm</title>"  # to be read aloud
    path.write_text(svg(figure).replace(">", f">{title}", 1))


def main() -> None:
    """Run, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--port", type=int, default=18_800)
    parser.add_argument(
        "--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS)
    )
    options = parser.parse_args()
    for name in options.only:
        print(f"== {name}", flush=True)
        run(VARIANTS[name], directory(name, options.out), options.steps, options.port)
    ended = [name for name in VARIANTS if (directory(name, options.out) / "ended.json").is_file()]
    found = {name: figures(name, options.out) for name in ended}
    (options.out / "collapse.json").write_text(json.dumps(found, indent=1))
    plot(found, options.out / "collapse.svg")
    for name, run_figures in found.items():
        told = {key: run_figures[key] for key in ("first_alarm", "half_lost", "steps_before", "exit_code")}
        print(name, told, sorted({alarm["rule"] for alarm in run_figures["alarms"] if "rule" in alarm}))


if __name__ == "__main__":
    main()
