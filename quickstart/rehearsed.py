"""What came of a rehearsal: the figures of each stage, and what they do not show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from research_rl.errors import ConfigError
from research_rl.training.metric_files import logged
from research_rl.training.recipe import stages_of
from research_rl.training.trajectory_log import read


def outcome(run_dir: Path, recipe: Path) -> Iterator[dict[str, Any]]:
    """Yield what each stage did.

    Raises:
        ConfigError: a stage has a gradient whose norm is not finite.
    """
    for stage in [stage.name for stage in stages_of(recipe, [])[0]] or [""]:
        directory = run_dir / stage
        records = [record for record in read(directory / "trajectories") if not record["validate"]]
        updates = [data for row in logged(directory) if "actor/grad_norm" in (data := row["data"])]
        if wrong := [step["actor/grad_norm"] for step in updates if not math.isfinite(step["actor/grad_norm"])]:
            raise ConfigError(f"stage {stage or recipe.stem}: a gradient is {wrong[0]}")
        yield {
            "stage": stage,
            "steps": len(updates),
            "rollouts": len(records),
            "searches": sum(len(turn["passages"]) > 0 for record in records for turn in record["turns"]),
            "reward": [round(step["critic/score/mean"], 3) for step in updates],
            "gradient": [round(step["actor/grad_norm"], 3) for step in updates],
            "seconds": [round(step["timing_s/step"], 1) for step in updates],
        }


def show(told: Mapping[str, Any], run_dir: Path, console: Console) -> None:
    """Print the result."""
    table = Table("stage", "steps", "rollouts", "searches", "reward by step", "gradient norm by step", title=told["recipe"])
    for stage in told["stages"]:
        table.add_row(
            stage["stage"] or "–", *(str(stage[name]) for name in ("steps", "rollouts", "searches", "reward", "gradient"))
        )
    console.print(table)
    for stage in told["stages"]:
        name = f"stage {stage['stage']}: " if stage["stage"] else ""
        if not stage["searches"]:
            console.print(
                f"{name}no rollout found a passage: neither searching nor masking was rehearsed",
                style="yellow",
                highlight=False,
            )
        if not any(stage["gradient"]):
            console.print(
                f"{name}no update changed the model, for all rollouts of a question scored alike: take more --steps, or another --seed",
                style="yellow",
                highlight=False,
            )
    console.print(f"{told['seconds']} s; {run_dir / 'rehearsal.json'}", highlight=False)
