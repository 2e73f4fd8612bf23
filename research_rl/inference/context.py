"""Budgets fitted to the context of a model's server: prompt and response must fit in it together."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from research_rl.errors import GenerationError
from research_rl.types import Budget

LONGER = "serve the model with a longer context (vllm serve MODEL --max-model-len N)"


def served_context(models: Any, model: str) -> int | None:
    """Return the context of a model in tokens, read from the answer to ``GET /v1/models``; None if it is not stated.

    vLLM states it for base models (`max_model_len`), and names an adapter's base model (`parent`).
    """
    try:
        cards = {card["id"]: card for card in models["data"]}
    except (KeyError, TypeError):
        return None
    card = cards.get(model, {})
    tokens = card.get("max_model_len") or cards.get(card.get("parent"), {}).get("max_model_len")
    return tokens if isinstance(tokens, int) else None


class Fitting:
    """Makes budgets smaller if the server's context is too short for them, and logs that once."""

    def __init__(self) -> None:
        self.reduced = 0  # rollouts that got a smaller budget than asked for

    def fit(self, budget: Budget, context: int | None, prompt_tokens: int, question: str) -> Budget:
        """Return the budget of one rollout: `budget` if it fits, or if the server's context is unknown (None); else a smaller one.

        Raises:
            GenerationError: the prompt alone fills the context.
        """
        if context is None or prompt_tokens + budget.response_tokens <= context:
            return budget
        room = context - prompt_tokens
        if room < 1:
            raise GenerationError(
                f"the question {question[:80]!r} cannot be asked: its prompt has {prompt_tokens:,} tokens, and the model's server "
                f"allows {context:,} for prompt and response together; shorten it, or {LONGER}"
            )
        self.reduced += 1
        if self.reduced == 1:
            logging.getLogger(__name__).warning(
                f"the model's server allows {context:,} tokens for prompt and response together: a response gets what the prompt "
                f"leaves of them (here {room:,}), not {budget.response_tokens:,}; for more, {LONGER}"
            )
        return replace(budget, response_tokens=room)
