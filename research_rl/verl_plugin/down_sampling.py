"""Training on some of a question's rollouts: `research_rl.trained_rollouts`, max-variance down-sampling (PODS, arXiv 2504.13818).

On a CPU an update on all rollouts takes about twice as long as the rollouts themselves (recipes/wikipedia). So
more are sampled than are trained on: of every question, those whose scores differ most. The others get an advantage of 0, and the CPU
engine skips them; verl's own engines process them all the same.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import wrapt

_kept: ContextVar[int | None] = ContextVar("trained rollouts of a question", default=None)


def max_variance_rows(scores: Sequence[float], groups: Sequence[Hashable], keep: int) -> list[int]:
    """Return the rows to keep, in ascending order: of each group the `keep` whose scores have the largest variance (all of a smaller
    group).

    These are always the i lowest and the `keep` − i highest for some i (PODS, theorem 1). Among equal scores the choice is random, seeded
    by the group's name.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    chosen: list[int] = []
    for group, rows in members.items():
        if len(rows) > keep:
            random.Random(str(group)).shuffle(rows)
            rows.sort(key=lambda row: scores[row])
            rows = max(
                (rows[:low] + rows[len(rows) - keep + low :] for low in range(keep + 1)),
                key=lambda some: _variance(scores, some),
            )
        chosen += rows
    return sorted(chosen)


def _variance(scores: Sequence[float], rows: Sequence[int]) -> float:
    values = [scores[row] for row in rows]
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def install(trainer_base: Any) -> None:
    """Wrap the functions that compute advantages (hooked to the import of `verl.trainer.ppo.v1.trainer_base`)."""
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_compute_advantage", _compute_advantage)
    wrapt.wrap_function_wrapper(trainer_base, "compute_advantage_for_multi_trajectories", advantages_of_some)


def _compute_advantage(compute: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Pass the number of kept rollouts to the function below, which does not get verl's whole configuration."""
    token = _kept.set(trainer.config.get("research_rl", {}).get("trained_rollouts"))
    try:
        return compute(*args, **kwargs)
    finally:
        _kept.reset(token)


def advantages_of_some(compute: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    """Return the batch with the estimator's advantages, computed among the kept rows only, and 0 for the others."""
    keep = _kept.get()
    if keep is None:
        return compute(*args, **kwargs)
    data, keys = args[0], kwargs.pop("batch_keys")
    rows = max_variance_rows(data.batch["token_level_scores"].sum(dim=-1).tolist(), data.non_tensor_batch["uid"].tolist(), keep)
    some = compute(data.select_idxs(rows), batch_keys=[keys[row] for row in rows], **kwargs)
    for name in ("advantages", "returns"):
        whole = torch.zeros(len(data), *some.batch[name].shape[1:], dtype=some.batch[name].dtype)
        whole[rows] = some.batch[name]
        data.batch[name] = whole
    return data
