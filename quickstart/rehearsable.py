"""Which recipes can be rehearsed: those of reinforcement learning on GPUs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError
from research_rl.training.jobs import MODEL
from research_rl.training.recipe import hydra_value, is_on_cpu, load_recipe


def composed(options: argparse.Namespace, run_dir: Path) -> Any:
    """Return the configuration of the recipe's first stage, with the model to stand in for.

    Raises:
        ConfigError: it cannot be composed, or is no recipe of reinforcement learning on GPUs.
    """
    from research_rl.verl_plugin.doctor.compose import compositions, is_supervised

    recipe = options.recipe
    if options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {options.steps}")
    if is_supervised(recipe):
        raise ConfigError(
            f"{recipe} is of supervised training; a rehearsal is of reinforcement learning. Name such a recipe for GPUs"
        )
    if is_on_cpu(load_recipe(recipe)):
        raise ConfigError(f"{recipe} is for a CPU already; name a recipe for GPUs, or run this one: research-rl train {recipe}")
    model = [f"{MODEL}={hydra_value(options.model)}"] if options.model else []
    config = next(iter(compositions(recipe, run_dir, [*options.overrides, *model])))[1]
    if missing := [section for section in ("actor_rollout_ref", "research_rl") if section not in config]:
        raise ConfigError(
            f"{recipe} is no recipe of reinforcement learning: it has no {' and no '.join(missing)}. The recipe of an experiment is the "
            "file that its key `train` names"
        )
    return config
