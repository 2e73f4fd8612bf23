"""Rules on a run's figures at every step: `research_rl.health.rules`. A rule that holds long enough raises an alarm, with an action.

rules:
  format:                        # any name
    metric: health/well_formed_rate
    window: 10                   # steps over which the mean is taken
    falls_by: 0.3                # or rises_by, below, above, not_finite: exactly one
    after: 10                    # no alarm up to this step
    for: 1                       # steps in a row for which it must hold
    action: warn                 # or save, halt, rollback
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from research_rl.errors import ConfigError
from research_rl.health import FAMILIES, FIGURES

ACTIONS = ("warn", "save", "halt", "rollback")  # in order of severity
KINDS = ("below", "above", "falls_by", "rises_by", "not_finite")
# metrics that exist when a step's update is done; verl computes the others (critic/*, response_length/*, timing) after its checkpoint
SOURCES = ("health/", "training/search/", "training/rollout_probs_diff", "rollout_corr/", "actor/")
_KEYS = ("metric", *KINDS, "window", "after", "for", "once_above", "action", "advice")
_TO_DO = {
    "warn": "nothing is done",
    "save": "a checkpoint is written",
    "halt": "the run ends",
    "rollback": "the run ends, to go on from a checkpoint before the trouble",
}


@dataclass(frozen=True)
class Rule:
    """A condition on a metric, and the action to take.

    `below`/`above`: the mean of the last `window` values is below (above) the limit. `falls_by`/`rises_by`: the mean is lower (higher) than
    the highest (lowest) earlier mean by more than this share of it. `not_finite`: a value is NaN or infinite (`metric` may be a pattern:
    `*`). `once_above`: the rule applies only after the mean has been above this value.
    """

    name: str
    metric: str
    kind: str
    limit: float
    window: int = 1
    after: int = 0
    steps: int = 1  # `for`
    once_above: float | None = None
    action: str = "warn"
    advice: str = ""

    @classmethod
    def from_mapping(cls, name: str, body: Any) -> Rule:
        """Check and return one rule.

        Raises:
            ConfigError: a key, metric or action is unknown, a number out of range, or there is not exactly one kind of threshold.
        """
        told = f"research_rl.health.rules.{name}"
        valid = f"valid: {', '.join(_KEYS)}; null switches a rule off"
        if not isinstance(body, Mapping):
            raise ConfigError(f"{told}: expected a mapping, got {body!r}; {valid}")
        if unknown := sorted(set(body) - set(_KEYS)):
            raise ConfigError(f"{told}: unknown keys {unknown}; {valid}")
        given = {key: value for key, value in body.items() if value is not None}
        kinds = [kind for kind in KINDS if kind in given]
        if len(kinds) != 1:
            raise ConfigError(f"{told}: expected one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
        kind, metric, action = kinds[0], given.get("metric"), given.get("action", "warn")
        _check_metric(told, metric, kind)
        if action not in ACTIONS:
            raise ConfigError(f"{told}.action={action!r} is unknown; valid: {', '.join(ACTIONS)}")
        if (kind, action) == ("not_finite", "save"):
            raise ConfigError(
                f"{told}.action='save': no checkpoint is written of a policy with NaN; valid with {kind}: warn, halt, rollback"
            )
        limit = 0.0 if kind == "not_finite" else _number(f"{told}.{kind}", given[kind])
        if kind in ("falls_by", "rises_by") and limit <= 0:
            raise ConfigError(f"{told}.{kind} must be a share of the best mean, more than 0, got {limit:g}")
        counts = {key: given.get(key, least) for key, least in (("window", 1), ("after", 0), ("for", 1))}
        for key, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < (key != "after"):
                raise ConfigError(f"{told}.{key} must be a number of steps, at least {int(key != 'after')}, got {value!r}")
        once = given.get("once_above")
        return cls(
            name, str(metric), kind, limit, counts["window"], counts["after"], counts["for"],
            None if once is None else _number(f"{told}.once_above", once), action, str(given.get("advice", "")),
        )  # fmt: skip  # many arguments


def _check_metric(told: str, metric: Any, kind: str) -> None:
    if kind == "not_finite" and isinstance(metric, str):
        return
    own = metric.removeprefix("health/") if isinstance(metric, str) and metric.startswith("health/") else None
    if not isinstance(metric, str) or not metric.startswith(SOURCES):
        raise ConfigError(
            f"{told}.metric={metric!r} is not a metric of a step; valid: names that begin with {', '.join(SOURCES)}"
        )
    if own is not None and own not in FIGURES and not own.startswith(FAMILIES):
        valid = ", ".join(f"health/{name}" for name in (*FIGURES, *(f"{family}…" for family in FAMILIES)))
        raise ConfigError(f"{told}.metric={metric!r} is unknown; valid: {valid}")


def _number(told: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{told} must be a number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Health:
    """The section `research_rl.health`: the rules, and how a run goes on after a rollback (see training/rollback.py)."""

    rules: tuple[Rule, ...] = ()
    lr_factor: float = 0.5
    times: int = 2

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Health:
        """Check and return the section.

        Raises:
            ConfigError: an unknown key, a wrong rule (see `Rule.from_mapping`), or a number out of range.
        """
        if unknown := sorted(set(section) - {"rules", "rollback"}):
            raise ConfigError(f"research_rl.health: unknown keys {unknown}; valid: rules, rollback")
        rollback = section.get("rollback") or {}
        if unknown := sorted(set(rollback) - {"lr_factor", "times"}):
            raise ConfigError(f"research_rl.health.rollback: unknown keys {unknown}; valid: lr_factor, times")
        factor = _number("research_rl.health.rollback.lr_factor", rollback.get("lr_factor", cls.lr_factor))
        times = rollback.get("times", cls.times)
        if not 0 < factor <= 1:
            raise ConfigError(f"research_rl.health.rollback.lr_factor must be more than 0 and at most 1, got {factor:g}")
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise ConfigError(f"research_rl.health.rollback.times must be a number of rollbacks, 0 or more, got {times!r}")
        rules = (section.get("rules") or {}).items()
        return cls(tuple(Rule.from_mapping(str(name), body) for name, body in rules if body is not None), factor, times)


@dataclass(frozen=True)
class Alarm:
    """An alarm of a rule: one line of health.jsonl. `since`: the first of the consecutive steps at which the rule held."""

    step: int
    rule: str
    metric: str
    value: float
    threshold: float
    action: str
    since: int
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record; NaN and infinity, which JSON lacks, as text."""
        return {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


@dataclass
class _State:
    """The state of one rule."""

    rule: Rule
    values: deque[float]
    best: float | None = None
    highest: float = -math.inf
    held: int = 0  # consecutive steps at which the rule held
    since: int = 0
    quiet: int = 0  # consecutive steps at which it did not hold
    alarmed: bool = False

    def see(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Take a step's metrics in; return the alarm if one begins."""
        rule = self.rule
        if rule.kind == "not_finite":
            found = next(
                (
                    (name, value)
                    for name, value in metrics.items()
                    if fnmatchcase(name, rule.metric) and not math.isfinite(value)
                ),
                None,
            )
            return self._judge(step, found is not None, *(found or (rule.metric, 0.0)), 0.0)
        value = metrics.get(rule.metric, math.nan)
        if not math.isfinite(value):
            return None
        self.values.append(value)
        if len(self.values) < rule.window:
            return None
        mean = math.fsum(self.values) / rule.window
        threshold = self._threshold()
        holds = False
        if threshold is not None and (rule.once_above is None or self.highest > rule.once_above):
            holds = mean < threshold if rule.kind in ("below", "falls_by") else mean > threshold
        self.highest = max(self.highest, mean)
        if rule.kind in ("falls_by", "rises_by"):
            better = max if rule.kind == "falls_by" else min
            self.best = mean if self.best is None else better(self.best, mean)
        return self._judge(step, holds, rule.metric, mean, threshold if threshold is not None else 0.0)

    def _threshold(self) -> float | None:
        rule = self.rule
        if rule.kind in ("below", "above"):
            return rule.limit
        if self.best is None:
            return None
        return self.best + abs(self.best) * rule.limit * (-1 if rule.kind == "falls_by" else 1)

    def _judge(self, step: int, holds: bool, metric: str, value: float, threshold: float) -> Alarm | None:
        rule = self.rule
        if not holds:
            self.held, self.quiet = 0, self.quiet + 1
            if self.quiet >= rule.window:  # the trouble is over: the next one is another alarm
                self.alarmed = False
            return None
        self.since = step if self.held == 0 else self.since
        self.held, self.quiet = self.held + 1, 0
        if self.alarmed or step <= rule.after or self.held < rule.steps:
            return None
        self.alarmed = True
        return Alarm(
            step, rule.name, metric, value, threshold, rule.action, self.since, self._message(step, metric, value, threshold)
        )

    def _message(self, step: int, metric: str, value: float, threshold: float) -> str:
        rule = self.rule
        what = f"{metric} is {value:.4g}"
        if rule.kind != "not_finite":
            over = f"mean of {rule.window} steps; " if rule.window > 1 else ""
            best = f", its best was {self.best:.4g}" if rule.kind in ("falls_by", "rises_by") else ""
            side = "less" if rule.kind in ("below", "falls_by") else "more"
            what += f" ({over}{side} than {threshold:.4g}{best})"
        advice = f" {rule.advice}" if rule.advice else ""
        return f"health rule {rule.name} at step {step}: {what}, since step {self.since}; {_TO_DO[rule.action]}.{advice}"


@dataclass
class Watch:
    """All rules of a run. Call `see` for every step in order; after an interruption, first for the earlier steps, ignoring alarms."""

    rules: Iterable[Rule]
    _states: list[_State] = field(init=False)

    def __post_init__(self) -> None:
        self._states = [_State(rule, deque(maxlen=rule.window)) for rule in self.rules]

    def see(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take a step's metrics in; return the alarms that begin with it."""
        return [alarm for state in self._states if (alarm := state.see(step, metrics)) is not None]

    @property
    def standing(self) -> list[Rule]:
        """The rules whose alarm is not over."""
        return [state.rule for state in self._states if state.alarmed]

    def watched(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a step that the rules need in order to continue after it."""
        names = {state.rule.metric for state in self._states if state.rule.kind != "not_finite"}
        return {name: value for name, value in metrics.items() if name in names}
