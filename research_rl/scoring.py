"""The figures of one trajectory, under the names that training logs, evaluation and reports share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace

from research_rl.errors import ConfigError
from research_rl.methods.base import Method
from research_rl.metrics import cover_em_substring, exact_match, f1
from research_rl.types import Reward, StopReason, Trajectory

REWARD, RULE = "reward/", "rule/"  # how the names of a reward's components begin in a record, and those of its format rules
MALFORMED = "not well formed"
_OUTCOMES = ("answer", "em", "f1", "judge")  # components that say how right the answer is, which may be negative
_FAULTS = ("malformed_call", "unknown_ids")  # components that count what should not have happened


def trajectory_metrics(
    method: Method, trajectory: Trajectory, golden_answers: Sequence[str], reward: Reward | None = None
) -> dict[str, float]:
    """Return reward (`score`), its named components as `reward/NAME`, and the method-independent metrics; all floats.

    `reward`: if given, it replaces the method's reward of the single trajectory (rewards of a group may depend on one another).
    """
    answer = method.answer(trajectory) or ""
    reward = reward or method.reward(trajectory, golden_answers)
    return {
        "score": reward.score,
        **{f"{REWARD}{name}": value for name, value in reward.components.items()},
        "em": exact_match(answer, golden_answers) if answer else 0.0,
        "f1": f1(answer, golden_answers),
        "cover_em_substring": cover_em_substring(answer, golden_answers) if answer else 0.0,
        "searches": float(len(trajectory.searches)),
        "retrieval_rate": float(bool(trajectory.searches)),
        "well_formed": float(method.well_formed(trajectory)),
        "answered": float(trajectory.stop_reason is StopReason.ANSWERED),
    }


def broken_rules(components: Mapping[str, float], well_formed: float | None = None) -> set[str]:
    """Return the names of the rules that a trajectory broke, from the components of its reward.

    Components are values of several kinds, and 0 is good in some of them:
    - `rule/NAME` is broken if it is 0 (a rule that is kept is 1);
    - a component that counts faults (`malformed_call`, `unknown_ids`) is broken if it is positive;
    - any other negative component is a penalty that was paid (not one of the answer, which may be negative if it is wrong);
    - `format` is 1 or 0 in some methods, 0 or a penalty in others. So `MALFORMED` is added if `well_formed` is 0; if that is not known, if
      one of the rules is broken; and if there are no rules, if `format` is not positive.
    A reward that was not earned (`answer`, `retrieval`, `group`) breaks nothing.
    """
    rules = {name.removeprefix(RULE): value for name, value in components.items() if name.startswith(RULE)}
    broken = {name for name, kept in rules.items() if kept == 0}
    form = well_formed
    if form is None:
        form = float(not broken) if rules else components.get("format", 1.0)
    broken |= {name for name in _FAULTS if components.get(name, 0.0) > 0}
    broken |= {name for name, value in components.items() if value < 0 and name not in (*_OUTCOMES, "format")}
    return broken | ({MALFORMED} if form <= 0 else set())


def judged_reward(method: Method, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None) -> Reward:
    """Return a method's reward under a judge's verdict, which becomes the component `judge`; without a verdict, the method's own."""
    if judged is None:
        return method.reward(trajectory, golden_answers)
    reward = method.reward(trajectory, golden_answers, judged)
    return replace(reward, components={**reward.components, "judge": judged})


def rewards_answer(method: Method) -> bool:
    """Return whether a method's reward depends on the final answer, so that there is something to judge; this is assumed of a method
    without `write_answer`.

    Raises:
        ConfigError: its `reward` does not take a verdict.
    """
    if "judged" not in inspect.signature(method.reward).parameters:
        raise ConfigError(
            f"the method {method.name} cannot be judged: its `reward` must take `judged`, a verdict (1.0 or 0.0) that replaces its own "
            "metric of the answer, or None (see research_rl.methods.base.Method.reward)"
        )
    try:
        trajectory = method.read(method.write_answer(" I know it.", "Oslo"))
    except ConfigError:
        return True
    return method.reward(trajectory, ["Oslo"], 1.0).score != method.reward(trajectory, ["Oslo"], 0.0).score
