"""The figures of one trajectory, under the names that training logs, evaluation and reports share."""

from __future__ import annotations

from collections.abc import Sequence

from research_rl.methods.base import Method
from research_rl.metrics import cover_em_substring, exact_match, f1
from research_rl.types import Reward, StopReason, Trajectory


def trajectory_metrics(
    method: Method, trajectory: Trajectory, golden_answers: Sequence[str], reward: Reward | None = None
) -> dict[str, float]:
    """Return reward (`score`), its named components as `reward/NAME`, and the method-independent metrics; all floats.

    `reward`: if given, the one that counts (a group may have changed what the method says of the trajectory alone).
    """
    answer = method.answer(trajectory) or ""
    reward = reward or method.reward(trajectory, golden_answers)
    return {
        "score": reward.score,
        **{f"reward/{name}": value for name, value in reward.components.items()},
        "em": exact_match(answer, golden_answers) if answer else 0.0,
        "f1": f1(answer, golden_answers),
        "cover_em_substring": cover_em_substring(answer, golden_answers) if answer else 0.0,
        "searches": float(len(trajectory.searches)),
        "retrieval_rate": float(bool(trajectory.searches)),
        "well_formed": float(method.well_formed(trajectory)),
        "answered": float(trajectory.stop_reason is StopReason.ANSWERED),
    }
