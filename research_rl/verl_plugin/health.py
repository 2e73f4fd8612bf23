"""Applies the health rules in verl's trainer: to every step after its update, before verl decides whether to save a checkpoint."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError
from research_rl.files import write_text
from research_rl.training.health import ACTIONS, Alarm, Health, Watch
from research_rl.training.rollback import FIGURES, HALTED, LOG, UNHEALTHY, append, replay

_ATTRIBUTE = "_research_rl_health"


class Monitor:
    """Applies the rules to the steps of one trainer, and makes it save, not save, or end."""

    def __init__(self, trainer: Any, health: Health) -> None:
        self._trainer, self._health, self._watch = trainer, health, Watch(health.rules)
        self._checkpoints = Path(trainer.config.trainer.default_local_dir)
        self._directory = self._checkpoints.parent  # the run's, or its stage's
        self._save_freq = trainer.config.trainer.save_freq
        replay(self._watch, self._directory, before=trainer.global_steps)

    def judge(self, metrics: dict[str, Any]) -> None:
        """Take the metrics of the trainer's step in, add `health/alarms` (the number of rules in alarm), and carry out the actions."""
        step, settings = self._trainer.global_steps, self._trainer.config.trainer
        settings.save_freq = self._save_freq
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        alarms = self._watch.see(step, numbers)
        self._note(FIGURES, {"step": step, "metrics": self._watch.watched(numbers)})
        metrics["health/alarms"] = len(self._watch.standing)
        for alarm in alarms:
            print(f"research_rl: {alarm.message}", file=sys.stderr, flush=True)
            self._note(LOG, {**alarm.to_json(), "time": time.time()})
        if not alarms:
            return
        gravest = max(alarms, key=lambda alarm: ACTIONS.index(alarm.action))
        if gravest.action in ("halt", "rollback"):
            self._end(gravest)
        if any(alarm.action == "rollback" or self._rule(alarm).kind == "not_finite" for alarm in alarms):
            settings.save_freq = -1  # no run should continue from a broken policy, or from NaN
        elif gravest.action != "warn":
            settings.save_freq = 1

    def mark(self, checkpoint: Path) -> None:
        """Record in a checkpoint the rules in alarm, except those that only warn."""
        if names := [rule.name for rule in self._watch.standing if rule.action != "warn"]:
            write_text(checkpoint / UNHEALTHY, json.dumps({"rules": names}))

    def _note(self, log: str, record: Mapping[str, Any]) -> None:
        """Append to a log. If that fails, print it and go on: a full disk is not the policy's fault."""
        try:
            append(self._directory / log, record)
        except OSError as error:
            print(
                f"research_rl: {self._directory / log} has no line for step {record['step']}: {error}",
                file=sys.stderr,
                flush=True,
            )

    def _end(self, alarm: Alarm) -> None:
        """Make this step the last one, and record why, for `research_rl.train`."""
        told = {
            **alarm.to_json(),
            "window": self._rule(alarm).window,
            "time": time.time(),
            "lr": self._trainer.config.actor_rollout_ref.actor.optim.lr,
            "lr_factor": self._health.lr_factor,
            "times": self._health.times,
        }
        write_text(self._checkpoints / HALTED, json.dumps(told))
        self._trainer.total_training_steps = alarm.step

    def _rule(self, alarm: Alarm) -> Any:
        return next(rule for rule in self._health.rules if rule.name == alarm.rule)


def check_health(config: Any, health: Health) -> None:
    """Check that the actions of the rules are possible.

    Raises:
        ConfigError: a run could not be rolled back.
    """
    names = [rule.name for rule in health.rules if rule.action == "rollback"]
    trainer, needed = config.trainer, "trainer.save_freq > 0, trainer.resume_mode=auto, and checkpoints in RUN_DIR/checkpoints"
    if names and (
        trainer.save_freq < 1 or trainer.resume_mode != "auto" or Path(trainer.default_local_dir).name != "checkpoints"
    ):
        raise ConfigError(
            f"research_rl.health.rules.{names[0]}.action=rollback needs {needed}; got trainer.save_freq={trainer.save_freq}, "
            f"trainer.resume_mode={trainer.resume_mode}, trainer.default_local_dir={trainer.default_local_dir}"
        )


def monitor_of(trainer: Any) -> Monitor:
    """Return the trainer's monitor, made at its first step."""
    if not hasattr(trainer, _ATTRIBUTE):
        section: Mapping[str, Any] = _plain(trainer.config.research_rl.get("health"))
        setattr(trainer, _ATTRIBUTE, Monitor(trainer, Health.from_mapping(section)))
    return getattr(trainer, _ATTRIBUTE)


def mark_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """See `Monitor.mark`; a trainer that has made no step has no monitor."""
    if hasattr(trainer, _ATTRIBUTE):
        getattr(trainer, _ATTRIBUTE).mark(checkpoint)


def _plain(section: Any) -> Mapping[str, Any]:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    return found or {}
