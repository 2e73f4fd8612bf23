"""Answers without a verdict: counted by the rollout workers; reported and limited by the trainer after a step or a validation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from research_rl.errors import JudgeError
from research_rl.judge import JudgeSettings
from research_rl.judge_client import Judgement


@dataclass
class Unjudged:
    """How many rollouts there were, how many of them the method's own metric scored for lack of a verdict, and why the last had none."""

    rollouts: int = 0
    fallbacks: int = 0
    failure: str = ""

    def add(self, judgement: Judgement) -> None:
        """Count one rollout."""
        self.rollouts += 1
        if judgement.right is None:
            self.fallbacks, self.failure = self.fallbacks + 1, judgement.said


def together(found: Iterable[Unjudged]) -> Unjudged:
    """Return the sum of the counts of all workers."""
    every = Unjudged()
    for one in found:
        every.rollouts += one.rollouts
        every.fallbacks += one.fallbacks
        every.failure = one.failure or every.failure
    return every


def tell_unjudged(trainer: Any, validate: bool) -> None:
    """Print how many answers of the step (or the validation) got no verdict. Does nothing without a judge.

    Raises:
        JudgeError: they are more than `research_rl.judge.max_fallback_share` of the rollouts. One is allowed, unless the share is 0.
    """
    section = trainer.config["research_rl"].get("judge") or {}
    if section.get("url") is None:
        return
    found = trainer.agent_loop_manager.unjudged(validate)
    if not found.fallbacks:
        return
    most = section.get("max_fallback_share", JudgeSettings.max_fallback_share)
    what = (
        f"{'the validation at step' if validate else 'step'} {trainer.global_steps}: {found.fallbacks} of {found.rollouts} rollouts got no "
        f"verdict and were scored by the method's own metric"
    )
    if found.fallbacks > (max(1, most * found.rollouts) if most else 0):
        raise JudgeError(
            f"{what}, more than research_rl.judge.max_fallback_share={most:g} allows. Is the judge up, and fast enough? "
            f"The last one: {found.failure}"
        )
    print(f"research_rl: {what}. The last one: {found.failure}", file=sys.stderr)
