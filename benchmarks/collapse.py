"""``python -m benchmarks.collapse --out DIR``: does the health of a run tell a collapse before the reward does, and is it silent otherwise?

Runs the quickstart as it is and with two updates per batch; with a learning rate 30 times too high, at once (with the default rules, and
with one that rolls back) and reached in 40 steps (as it is, with LLDS, with clip-higher); and with a reward that pays for every word of an
answer. Each is a run of its own in DIR/NAME; what is done is not run again. Writes DIR/collapse.json and DIR/collapse.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.variants import TWO, Variant, arguments, curves, directory, run, write_svg
from research_rl.web.page import subplots

LR = "actor_rollout_ref.actor.optim.lr=9e-3"
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
        "curves": found,
        "alarms": [{key: alarm[key] for key in ("step", "rule", "action") if key in alarm} for alarm in alarms],
        "first_alarm": first,
        "half_lost": lost,
        "steps_before": at - first if at and first else None,
        "exit_code": json.loads((run_dir / "ended.json").read_text())["exit_code"],
    }


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
    write_svg(figure, "EM of the training rollouts by step; dotted: the first alarm", path)


def main() -> None:
    """Run, and write."""
    options = arguments(__doc__, VARIANTS, steps=40, port=18_800)
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
