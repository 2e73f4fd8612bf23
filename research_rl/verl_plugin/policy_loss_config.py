"""verl's settings of a policy loss, extended by those of LLDS: the `_target_` of `actor_rollout_ref.actor.policy_loss`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from research_rl.errors import ConfigError, missing_extra

try:
    from verl.workers.config import PolicyLossConfig
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

GATES = ("action", "response")


@dataclass
class LLDSConfig(PolicyLossConfig):
    """λ, and whether the sum of an action or of a response must have fallen (see `policy_loss.llds_penalty`)."""

    llds_lambda: float = 0.1
    llds_gate: str = "action"


def check_policy_loss(section: Any) -> None:
    """Check the name of the loss and the settings of LLDS; verl would notice a mistake at the first update only.

    Raises:
        ConfigError: one is unknown, or λ is negative.
    """
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    key, name = "actor_rollout_ref.actor.policy_loss", section.get("loss_mode", "vanilla")
    if name not in POLICY_LOSS_REGISTRY:
        raise ConfigError(f"{key}.loss_mode={name!r} is unknown; valid: {', '.join(sorted(POLICY_LOSS_REGISTRY))}")
    coefficient, gate = section.get("llds_lambda", 0.1), section.get("llds_gate", "action")
    if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)) or not coefficient >= 0:
        raise ConfigError(f"{key}.llds_lambda must be a number, 0 or more, got {coefficient!r}")
    if gate not in GATES:
        raise ConfigError(f"{key}.llds_gate={gate!r} is unknown; valid: {', '.join(GATES)}")
