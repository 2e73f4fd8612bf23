"""Called after every checkpoint: writes its manifest, and ends a stage whose metric has been reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from research_rl.errors import missing_extra
from research_rl.files import write_text
from research_rl.training.settings import Settings
from research_rl.training.stages import ENDED, Progress, Until
from research_rl.training.trajectory_log import TrajectoryReader
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.health import mark_checkpoint
from research_rl.verl_plugin.manifest import finish_checkpoint

try:
    from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


class SearchCheckpoint(CheckpointCallback):
    """Named by `trainer.checkpoint_callback_class`; verl calls it after every checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._checkpoints = Path(config.trainer.default_local_dir)
        self._settings: Settings = settings_of(config)
        self._until = Until.from_mapping(self._settings.until or {})
        self._progress = Progress(self._until)
        self._reader = TrajectoryReader(self._settings.trajectory_dir or "")  # reads each trajectory once

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any) -> None:
        """Write the manifest, and end the training if the stage's metric has been reached."""
        finish_checkpoint(self.config, self._settings, global_step, Path(checkpoint_dir))
        mark_checkpoint(trainer, Path(checkpoint_dir))
        if self._until.metric:
            self._end_if_reached(trainer, global_step)

    def _end_if_reached(self, trainer: Any, step: int) -> None:
        for record in self._reader.new():
            self._progress.add(record)
        if not self._progress.steps:
            print(
                f"research_rl: NO TRAINING TRAJECTORY in {self._settings.trajectory_dir} at step {step}: the stage cannot end by "
                f"{self._until.metric}. On several nodes research_rl.trajectory_dir must be on a shared file system",
                file=sys.stderr,
            )
        if (value := self._progress.reached()) is not None:
            told = {"step": step, "metric": self._until.metric, "mean": value, "window": self._until.window}
            write_text(self._checkpoints / ENDED, json.dumps(told))
            print(f"research_rl: stage {self._settings.stage!r} ends at step {step}: {self._until.metric} is {value:.3f}")
            trainer.total_training_steps = step
