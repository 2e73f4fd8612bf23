"""verl's settings of a policy loss, extended by those of LLDS: the `_target_` of `actor_rollout_ref.actor.policy_loss`."""

from __future__ import annotations

from dataclasses import dataclass

from research_rl.errors import missing_extra

try:
    from verl.workers.config import PolicyLossConfig
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


@dataclass
class LLDSConfig(PolicyLossConfig):
    """λ, and whether the sum of an action or of a response must have fallen (see `policy_loss.llds_penalty`)."""

    llds_lambda: float = 0.1
    llds_gate: str = "action"
