"""The files that health rules write into a run's directory, and how a run goes on after a rule has ended it.

`health.jsonl`: one line per alarm and rollback, for readers. `health_figures.jsonl`: the metrics of each step that the rules need in order
to continue after an interruption. `checkpoints/halted.json`: the rule that ended the run. `checkpoints/global_step_N/unhealthy.json`: the
rules in alarm when this checkpoint was saved, except those that only warn; no rollback goes to it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research_rl.files import whole_lines, write_text
from research_rl.training.health import Watch

LOG, FIGURES, HALTED, UNHEALTHY = "health.jsonl", "health_figures.jsonl", "halted.json", "unhealthy.json"
TRACKER = "latest_checkpointed_iteration.txt"
ROLLED_BACK = "rolled_back"  # the action in a rollback's line of health.jsonl
LR = "actor_rollout_ref.actor.optim.lr"
# set in the environment of a run after a rollback: use the configuration's learning rate instead of the checkpoint's
LR_FROM_CONFIG = "RESEARCH_RL_LR_FROM_CONFIG"
HALTED_CODE = 3  # what research_rl.train ends with when a rule has ended the run


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a line to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def replay(watch: Watch, directory: Path, before: int) -> None:
    """Feed a watch the recorded steps before `before`; of a step that was run twice, the last record counts."""
    steps = {record["step"]: record["metrics"] for record in _records(directory / FIGURES)}
    for step in sorted(step for step in steps if step < before):
        watch.see(step, steps[step])


def halted(directory: Path) -> dict[str, Any] | None:
    """Return what ended a run, None if no rule did."""
    path = directory / "checkpoints" / HALTED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def stopped(directory: Path) -> int:
    """Handle a job that a rule has ended: return 0 if it goes on after a rollback; else print why, and return HALTED_CODE."""
    if (halt := halted(directory)) is None:
        return 0
    why = roll_back(directory, halt) if halt["action"] == "rollback" else ""
    if halt["action"] == "rollback" and not why:
        return 0
    print(
        f"research_rl: halted by health rule {halt['rule']} at step {halt['step']}{f', and not rolled back: {why}' if why else ''}. "
        f"Results so far are in {directory}; {directory / LOG} says more. To go on from the last checkpoint, run the same command again; "
        f"with research_rl.health.rules.{halt['rule']}.action=warn the rule only warns",
        file=sys.stderr,
        flush=True,
    )
    return HALTED_CODE


def go_on(directory: Path) -> None:
    """Let a run that a rule has ended go on: roll it back if that is the rule's action and is possible, else leave it as it is."""
    halt = halted(directory)
    if halt is not None and halt["action"] == "rollback":
        roll_back(directory, halt)
    _forget(directory)


def _forget(directory: Path) -> None:
    (directory / "checkpoints" / HALTED).unlink(missing_ok=True)


def after_rollbacks(directory: Path) -> tuple[list[str], dict[str, str]]:
    """Return the overrides and environment variables that set the learning rate of a run after rollbacks; empty without one."""
    done = rollbacks(directory)
    return ([f"{LR}={done[-1]['lr']!r}"], {LR_FROM_CONFIG: "1"}) if done else ([], {})


def rollbacks(directory: Path) -> list[dict[str, Any]]:
    """Return the rollbacks of a run, in order."""
    return [record for record in _records(directory / LOG) if record["action"] == ROLLED_BACK]


def roll_back(directory: Path, halt: Mapping[str, Any]) -> str:
    """Set a run back to the last checkpoint that was saved before the trouble; return why that cannot be done, else "".

    The trouble began at most a rule's window before the first step at which the rule held, and the rollouts of a step come from the weights
    of the step before it. A run without a checkpoint from before the trouble begins again. Later checkpoints are renamed, and the new
    learning rate is recorded in health.jsonl.
    """
    checkpoints, done = directory / "checkpoints", rollbacks(directory)
    if done and done[-1]["halted_at"] == halt["time"]:  # this rollback was interrupted after its record was written
        _forget(directory)
        return ""
    if len(done) >= halt["times"]:
        return f"it has been rolled back {len(done)} times (research_rl.health.rollback.times={halt['times']})"
    last = max(halt["since"] - halt["window"] - 1, 0)
    before = {step: path for step, path in _saved(checkpoints).items() if step <= last}
    healthy = [step for step, path in before.items() if _whole(path)] or [0] * (not before)
    if not healthy:
        return f"there is no whole checkpoint of step {last} or before (trainer.save_freq, trainer.max_actor_ckpt_to_keep)"
    target, lr = max(healthy), halt["lr"] * halt["lr_factor"]
    if target:
        write_text(checkpoints / TRACKER, str(target))
    else:
        (checkpoints / TRACKER).unlink(missing_ok=True)
    for step, path in _saved(checkpoints).items():
        if step > target:
            path.rename(path.with_name(f"rolled_back_{len(done) + 1}_{path.name}"))
    message = f"rolled back from step {halt['step']} to step {target}: {halt['rule']}; the learning rate is now {lr:g}"
    append(directory / LOG, {
        "step": halt["step"], "rule": halt["rule"], "metric": halt["metric"], "value": halt["value"], "threshold": halt["threshold"],
        "action": ROLLED_BACK, "message": message, "to_step": target, "lr": lr, "halted_at": halt["time"], "time": time.time(),
    })  # fmt: skip  # many arguments
    _forget(directory)
    print(f"research_rl: {message}", flush=True)
    return ""


def _saved(checkpoints: Path) -> dict[int, Path]:
    found = {path.name.removeprefix("global_step_"): path for path in checkpoints.glob("global_step_*")}
    return {int(step): path for step, path in found.items() if step.isdecimal()}


def _whole(checkpoint: Path) -> bool:
    """Return whether a run can continue from a checkpoint: verl empties those beyond `max_actor_ckpt_to_keep`."""
    actor = checkpoint / "actor"
    return actor.is_dir() and any(actor.iterdir()) and not (checkpoint / UNHEALTHY).is_file()


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(path)]
