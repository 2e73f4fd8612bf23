"""Skips the validation before training in a run that resumes from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from research_rl.training.jobs import last_step
from research_rl.training.recipe import override_key

_KEY = "trainer.val_before_train"


def measure_once(config: Any, questions: int | None) -> None:
    """Set `trainer.val_before_train` to false if verl will resume before the last step, unless the command line sets it.

    A run at its last step is only resumed to be measured. `questions`: the number of training questions, None if unknown.
    """
    trainer = config.trainer
    step = resumed(trainer)
    if step is None or not trainer.val_before_train or trainer.get("val_only") or _by_hand():
        return
    steps = trainer.total_training_steps
    if steps is None and questions is not None:
        steps = questions // config.data.train_batch_size * trainer.total_epochs
    if steps is not None and step >= steps:
        return
    with open_dict(config):
        trainer.val_before_train = False
    print(f"research_rl: going on from step {step} without validating first ({_KEY}=true asks for it)")


def resumed(trainer: Any) -> int | None:
    """Return the step of the checkpoint from which verl will resume, None if there is none."""
    if trainer.resume_mode == "resume_path":
        return int(str(trainer.resume_from_path).rpartition("global_step_")[2])
    checkpoints = Path(trainer.default_local_dir)
    step = last_step(checkpoints)
    there = step is not None and (checkpoints / f"global_step_{step}").is_dir()
    return step if there and trainer.resume_mode == "auto" else None


def _by_hand() -> bool:
    return HydraConfig.initialized() and any(override_key(part) == _KEY for part in HydraConfig.get().overrides.task)
