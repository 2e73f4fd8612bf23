"""The arithmetic of a training step: floating-point operations, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

# FLOPs a parameter and token; attention is left out, which is less than a tenth at 4,000 tokens in a model of 7 B parameters
FORWARD, UPDATE, UPDATE_FROZEN = 2, 6, 4  # a frozen model (LoRA) needs no gradients of its weights
H100, H100_USED = 989e12, 0.35  # FLOP/s in bfloat16 (data sheet, dense), and the share that is assumed to be reached


@dataclass(frozen=True)
class Step:
    """The sizes of a step of reinforcement learning.

    `tokens`: of a rollout, the mean of prompt, response and passages together; `trained`: the share of the rollouts that the update is
    made of; `passes`: forward passes over all rollouts beside sampling and update (π_old, π_ref).
    """

    rollouts: int
    tokens: float
    parameters: float
    trained: float = 1.0
    passes: int = 2
    frozen: bool = False
    recomputed: bool = False  # gradient checkpointing: the update computes the activations once more

    def flops(self) -> float:
        """Return the floating-point operations of all parts: every token passes the model once as it is sampled or read."""
        update = (UPDATE_FROZEN if self.frozen else UPDATE) + FORWARD * self.recomputed
        each = FORWARD * (1 + self.passes) + self.trained * update
        return self.rollouts * self.tokens * self.parameters * each
