"""Advantages as R1-Searcher's trainer computes them: `algorithm.adv_estimator: reinforce_group_baseline`. See docs/algorithms.md.

verl passes only token-level rewards, after the KL penalty, to estimators; the group mean here is over scores, before the penalty. So only
the name is registered, and `compute_advantage`, which has both, is wrapped to compute this estimator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "reinforce_group_baseline"


def reinforce_group_baseline(
    token_level_rewards: torch.Tensor, scores: torch.Tensor, response_mask: torch.Tensor, groups: Sequence[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns, both (batch, response length), 0 where the mask is 0.

    With score s of a rollout, mean s̄ over the rollouts of its question, and r_t the token-level reward (−β·k1 KL at every sampled token,
    plus s at the end): G_t = Σ_{t' ≥ t} r_t' − s̄, undiscounted, over sampled tokens; A = (G − mean G) / sqrt(max(var G, 1e-8)), mean and
    (population) variance over all sampled tokens of the batch.

    `token_level_rewards`: (batch, response length), KL included; `scores`: the same shape, without; `groups`: the question of each row.
    """
    mask = response_mask.to(token_level_rewards.dtype)
    members: dict[Any, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    total = scores.sum(dim=-1)
    baseline = total.new_zeros(total.shape)
    for rows in members.values():
        baseline[rows] = total[rows].mean()
    # if a response was cut in an observation, the reward is on its last token, which is not sampled: the sum gives it to those before
    returns = token_level_rewards.flip(-1).cumsum(-1).flip(-1) - baseline.unsqueeze(-1)
    returns = returns * mask
    count = mask.sum()
    mean = returns.sum() / count
    variance = (((returns - mean) * mask) ** 2).sum() / count
    return (returns - mean) * mask * variance.clamp(min=1e-8).rsqrt(), returns


def register(core_algos: Any) -> None:
    """Register the name in verl (hooked to the import of `verl.trainer.ppo.core_algos`)."""

    @core_algos.register_adv_est(NAME)
    def refuse(**_: Any) -> None:
        raise RuntimeError(f"{NAME} needs verl's v1 trainer (trainer.use_v1=true), which tells scores from KL")


def lead(utils: Any) -> None:
    """Make `compute_advantage` of verl's v1 trainer compute this estimator, too (hooked to the import of `verl.trainer.ppo.v1.utils`)."""
    original = utils.compute_advantage

    def compute_advantage(data: Any, adv_estimator: Any, **options: Any) -> Any:
        if adv_estimator != NAME:
            return original(data, adv_estimator=adv_estimator, **options)
        batch = data.batch
        batch["advantages"], batch["returns"] = reinforce_group_baseline(
            batch["token_level_rewards"], batch["token_level_scores"], batch["response_mask"], data.non_tensor_batch["uid"]
        )
        return data

    utils.compute_advantage = compute_advantage
