"""Stages: the parts of a run, in order, if a recipe has several. Each changes settings of the recipe and says when it ends.

stages:
  retrieval:
    until: {steps: 40, metric: retrieval_rate, reaches: 0.95, window: 5}
    overrides: {research_rl.method_options.preset: stage1_paper, algorithm.adv_estimator: reinforce_group_baseline}
  answer:
    until: {steps: 100}
    overrides: {research_rl.method_options.preset: stage2_paper}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from research_rl.errors import ConfigError

ENDED = "ended.json"  # beside the checkpoints of a stage that its metric ended


@dataclass(frozen=True)
class Until:
    """When a stage ends: after `steps`, or at the first checkpoint at which the mean of `metric` over the last `window` training steps
    is at least `reaches`, whichever comes first. `metric` is one of a trajectory's record (see scoring.trajectory_metrics)."""

    steps: int | None = None
    metric: str | None = None
    reaches: float | None = None
    window: int = 5

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Until:
        """Check and return the section.

        Raises:
            ConfigError: an unknown key, or numbers that cannot work.
        """
        valid = [item.name for item in fields(cls)]
        if unknown := sorted(set(section) - set(valid)):
            raise ConfigError(f"until: unknown keys {unknown}; valid: {', '.join(valid)}")
        until = cls(**section)
        for name, kinds in (("steps", int), ("window", int), ("reaches", (int, float)), ("metric", str)):
            value = getattr(until, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise ConfigError(f"until.{name} must be {'a number' if name != 'metric' else 'a name'}, got {value!r}")
        if (until.metric is None) != (until.reaches is None):
            raise ConfigError("until: metric and reaches belong together, for example metric: retrieval_rate, reaches: 0.95")
        if until.window < 1 or (until.steps is not None and until.steps < 1):
            raise ConfigError(f"until: steps and window must be at least 1, got {until.steps} and {until.window}")
        return until


@dataclass(frozen=True)
class Stage:
    """One stage: its name (a directory of the run), what it changes in the recipe (dotted key → value), and when it ends."""

    name: str
    until: Until
    overrides: Mapping[str, Any] = field(default_factory=dict)


def read_stages(section: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a recipe's `stages` section, checked.

    Raises:
        ConfigError: a stage has an unknown key, or no end.
    """
    stages = []
    for name, body in section.items():
        if unknown := sorted(set(body) - {"until", "overrides"}):
            raise ConfigError(f"stages.{name}: unknown keys {unknown}; valid: until, overrides")
        until = Until.from_mapping(body.get("until") or {})
        if until.steps is None:
            raise ConfigError(
                f"stages.{name}.until.steps is missing: the number of steps after which the stage ends at the latest"
            )
        stages.append(Stage(str(name), until, dict(body.get("overrides") or {})))
    return stages


class Progress:
    """A stage's metric over its training steps; it is given one trajectory record after the other."""

    def __init__(self, until: Until) -> None:
        self._until = until
        self._steps: dict[int, _Mean] = defaultdict(_Mean)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record into account, unless it is of a validation.

        Of a step that was run twice, only the last attempt counts.

        Raises:
            ConfigError: the record does not have the metric.
        """
        if record["validate"]:
            return
        if self._until.metric not in record["metrics"]:
            raise ConfigError(f"until.metric={self._until.metric!r} is unknown; valid: {', '.join(sorted(record['metrics']))}")
        self._steps[record["step"]].add(record["metrics"][self._until.metric], record["attempt"])

    @property
    def steps(self) -> int:
        """The number of training steps seen."""
        return len(self._steps)

    def reached(self) -> float | None:
        """Return the moving average of the metric if it has reached `reaches`, else None."""
        until = self._until
        last = [self._steps[step].value for step in sorted(self._steps)[-until.window :]]
        mean = sum(last) / len(last) if last else 0.0
        return mean if len(last) == until.window and until.reaches is not None and mean >= until.reaches else None


@dataclass
class _Mean:
    attempt: float = float("-inf")
    total: float = 0.0
    count: int = 0

    def add(self, value: float, attempt: float) -> None:
        if attempt > self.attempt:
            self.attempt, self.total, self.count = attempt, 0.0, 0
        if attempt == self.attempt:
            self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count
