"""A reward with a hole, for benchmarks/collapse.py: it pays for every word of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from research_rl.methods.research import ReSearch
from research_rl.metrics import cover_em_substring
from research_rl.types import Reward, Trajectory


class PaysForWords(ReSearch):
    """ReSearch, but for its reward: 0.2 for an answer that contains a golden one, and 0.1 for each word, up to 0.8."""

    name: ClassVar[str] = "research"

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str]) -> Reward:
        answer = self.answer(trajectory) or ""
        holds = cover_em_substring(answer, golden_answers) if answer else 0.0
        words = min(0.1 * len(answer.split()), 0.8)
        return Reward(0.2 * holds + words, {"holds": holds, "words": words})
