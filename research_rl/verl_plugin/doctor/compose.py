"""A recipe's configuration as training would compose it: every stage, with the overrides. Nothing is written."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research_rl.cpu import CPU_ENVIRONMENT
from research_rl.errors import ConfigError, missing_extra
from research_rl.training.jobs import MODEL, stage_overrides
from research_rl.training.recipe import SUPERVISED, defaults_of, is_on_cpu, load_recipe, override_key, stages_of


@contextlib.contextmanager
def environment(recipe: Path, run_dir: Path) -> Iterator[None]:
    """Set the environment variables of the recipe's jobs for a while, as `research_rl.training.jobs.jobs` does."""
    before = dict(os.environ)
    os.environ.update({**(CPU_ENVIRONMENT if is_on_cpu(load_recipe(recipe)) else {}), "RUN_DIR": str(run_dir)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def is_supervised(recipe: Path) -> bool:
    """Return whether a recipe is for verl's supervised trainer."""
    return SUPERVISED in defaults_of(load_recipe(recipe))


def compositions(recipe: Path, run_dir: Path, overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name of the stage, its resolved configuration), in order; a single one with an empty name for a recipe without stages.

    A later stage is checked with the model of the first one, which has the same size and tokenizer.

    Raises:
        ConfigError: it cannot be composed.
    """
    content = load_recipe(recipe)
    stages, others = stages_of(recipe, overrides)
    experiment = (content.get("trainer") or {}).get("experiment_name", recipe.stem)
    for number, stage in enumerate(stages or [None]):
        own = stage_overrides(stage, run_dir / stage.name, number, None, experiment) if stage else []
        given = [part for part in own if override_key(part) != MODEL] + others
        yield (stage.name if stage else ""), _composed(recipe, content, given)


def _composed(recipe: Path, content: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    paths = [*((content.get("hydra") or {}).get("searchpath") or []), _verl_config()]
    used = [part for part in overrides if not override_key(part).startswith("hydra.")]
    try:
        with initialize_config_dir(str(recipe.resolve().parent), version_base=None):
            config = compose(recipe.stem, overrides=[f"hydra.searchpath=[{','.join(paths)}]", *used])
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as failure:
        told = " ".join(str(failure).split())
        variable = "Environment variable" in told
        do = "Set it in front of the command: NAME=VALUE …" if variable else "Correct the recipe or the override"
        raise ConfigError(f"{recipe} cannot be composed: {told}. {do}") from None
    return config


def _verl_config() -> str:
    """Return where verl's own configuration is, by its path: to look it up as pkg://verl.trainer.config would import verl, for seconds."""
    found = importlib.util.find_spec("verl")
    if found is None or not found.origin:
        raise missing_extra("verl", "train")
    return f"file://{Path(found.origin).parent / 'trainer' / 'config'}"
