"""LLDS: verl's clipped loss plus a term that preserves the likelihood of rewarded actions (Deng et al., arXiv 2512.04220).

`actor_rollout_ref.actor.policy_loss.loss_mode: llds`. An action is what the policy wrote in one turn: a run of response_mask = 1. What
happens to the likelihood of these actions is logged with every loss: `actor/kept_logprob_change`.

The fall of a log-probability is measured against `old_log_probs`. With `algorithm.rollout_correction.bypass_mode` these are the engine's:
the fall since sampling, including the engine's rounding. Otherwise they are the trainer's at the start of the batch: the fall is 0 at the
first update, so that LLDS has an effect only if a batch makes several updates.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "llds"


def actions_of(mask: torch.Tensor) -> torch.Tensor:
    """Return the number of each token's action in its row, from 1; 0 where the mask is 0. (batch, response length)"""
    mask = mask.bool()
    before = torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return (mask & ~before).cumsum(dim=1) * mask


def kept_fall(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the fall of each token's log-probability, the sum of these falls over each action, and whether an action is to be kept.

    An action is to be kept if its rollout's mean advantage (over sampled tokens) is at least 0. Shapes: (batch, response length), and twice
    (batch, actions), where column 0 is for tokens that are not sampled, and is never kept. Only the first has a gradient.
    """
    actions = actions_of(mask)
    fall = torch.where(mask.bool(), old_log_prob - log_prob, 0.0)
    sums = fall.new_zeros(len(fall), int(actions.max()) + 1 if actions.numel() else 1).scatter_add(1, actions, fall.detach())
    kept = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, actions, True)
    kept[:, 0] = False
    return fall, sums, kept & (torch.where(mask.bool(), advantages, 0.0).sum(dim=1) >= 0).unsqueeze(1)


def llds_penalty(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, gate: str
) -> torch.Tensor:
    """Return max(0, log π_old − log π_θ) of the tokens that count, else 0. (batch, response length)

    With `gate` "action", the tokens of each action to be kept count if the action's summed log-probability has fallen; with "response", the
    tokens of all actions to be kept of a rollout count if the sum over all its actions has fallen.
    """
    fall, sums, kept = kept_fall(old_log_prob, log_prob, advantages, mask)
    if gate == "response":
        sums = (sums[:, 1:].sum(dim=1, keepdim=True)).expand_as(sums)
    fallen = (kept & (sums > 0)).gather(1, actions_of(mask))
    return torch.where(fallen, torch.relu(fall), 0.0)


def kept_logprob_change(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
) -> float:
    """Return the mean, over the actions to be kept, of the change of their summed log-probability (nats); 0 if there is none."""
    with torch.no_grad():
        _, sums, kept = kept_fall(old_log_prob, log_prob, advantages, mask)
        return -(sums[kept].mean().item()) if bool(kept.any()) else 0.0


def register(core_algos: Any) -> None:
    """Register the loss in verl (hooked to the import of `verl.trainer.ppo.core_algos`)."""

    @core_algos.register_policy_loss(NAME)
    def llds(
        old_log_prob: torch.Tensor,
        log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return verl's clipped loss plus λ times the penalty, averaged over the mini-batch as `loss_agg_mode` says."""
        loss, metrics = core_algos.compute_policy_loss_vanilla(
            old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
        )
        coefficient, gate = (
            config.policy_loss.get(name, default) for name, default in (("llds_lambda", 0.1), ("llds_gate", "action"))
        )
        penalty = llds_penalty(old_log_prob, log_prob, advantages, response_mask, gate)
        if coefficient:
            loss = loss + coefficient * core_algos.agg_loss(
                loss_mat=penalty, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info
            )
        tokens = response_mask.sum().clamp(min=1)
        return loss, {**metrics, "actor/llds": (penalty.detach().sum() / tokens).item()}


def log_likelihoods(losses: Any) -> None:
    """Make every policy loss report `actor/kept_logprob_change` (hooked to the import of `verl.workers.utils.losses`)."""
    original = losses.get_policy_loss_fn

    def get_policy_loss_fn(name: str) -> Any:
        loss_of = original(name)

        def policy_loss(**batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
            loss, metrics = loss_of(**batch)
            told = [batch[key] for key in ("old_log_prob", "log_prob", "advantages", "response_mask")]
            return loss, {**metrics, "actor/kept_logprob_change": kept_logprob_change(*told)}

        return policy_loss

    losses.get_policy_loss_fn = get_policy_loss_fn
