"""Stages: a recipe may name several, which one run goes through in order. Each changes settings of the recipe, and says when it ends.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from research_rl.errors import ConfigError

ENDED = "ended.json"  # beside the checkpoints of a stage that its metric ended


@dataclass(frozen=True)
class Until:
    """When a stage ends: after `steps`, or at the first checkpoint at which the mean of `metric` over the last `window` training steps
    is at least `reaches`, whichever comes first. `metric` is any that a trajectory's record has (see scoring.trajectory_metrics)."""

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
            raise ConfigError(f"stages.{name}.until.steps is missing: the most steps of the stage, whatever its metric does")
        stages.append(Stage(str(name), until, dict(body.get("overrides") or {})))
    return stages


def reached(until: Until, records: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the moving average of the metric if it has reached what it was to reach, else None.

    Raises:
        ConfigError: the records do not have the metric.
    """
    steps: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record["split"] != "train":
            continue
        if until.metric not in record["metrics"]:
            raise ConfigError(f"until.metric={until.metric!r} is unknown; valid: {', '.join(sorted(record['metrics']))}")
        steps[record["step"]].append(record["metrics"][until.metric])
    last = [sum(steps[step]) / len(steps[step]) for step in sorted(steps)[-until.window :]]
    mean = sum(last) / len(last) if last else 0.0
    return mean if len(last) == until.window and until.reaches is not None and mean >= until.reaches else None
