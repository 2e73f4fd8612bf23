"""Keeps a run on one corpus: its index is fixed when it starts and, if it resumes, must be that of the last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import open_dict

from research_rl.errors import ConfigError
from research_rl.inference.protocol import MANIFEST
from research_rl.training.settings import Settings
from research_rl.verl_plugin.manifest import indexes
from research_rl.verl_plugin.resuming import resumed


def fix_index(config: Any, settings: Settings) -> None:
    """Set `research_rl.retrieval.index_id` to the index that is served now, so that every worker refuses another one.

    Raises:
        ConfigError: see `index_to_fix`.
    """
    if main := index_to_fix(config, settings):
        with open_dict(config):
            config.research_rl.retrieval.index_id = main


def index_to_fix(config: Any, settings: Settings) -> str | None:
    """Return the id of the index that the run's service searches; None if the service does not name it.

    Raises:
        ConfigError: it is not the index that the recipe names, or not that of the checkpoint from which the run resumes.
    """
    served = {url: told for url, told in indexes(settings).items() if told}
    main = served.get(settings.retrieval_for("").address)
    named = settings.retrieval.get("index_id")
    if named and main and named != main:
        raise ConfigError(
            f"research_rl.retrieval.index_id={named}, but the service at {settings.retrieval_for('').address} serves the index {main}: "
            "serve the index that is named, or name the other one"
        )
    if not named:
        before = _of_checkpoint(config.trainer)
        now = set(served.values())
        if before and now and before != now:
            raise ConfigError(
                f"the run goes on from a checkpoint that was trained over the index {', '.join(sorted(before))}, but "
                f"{', '.join(sorted(now))} is served now: serve the same index, choose another directory, or go on with the new one by "
                f"research_rl.retrieval.index_id={main}"
            )
    return main


def _of_checkpoint(trainer: Any) -> set[str]:
    step = resumed(trainer)
    directory = Path(
        trainer.resume_from_path if trainer.resume_mode == "resume_path" else f"{trainer.default_local_dir}/global_step_{step}"
    )
    if step is None or not (directory / MANIFEST).is_file():
        return set()
    told = json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("indexes") or {}
    return {index for index in told.values() if index}
