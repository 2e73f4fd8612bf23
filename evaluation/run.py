"""Evaluate a served model: the same rollout as in training, over an OpenAI-compatible server and a retrieval service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from research_rl.errors import RetrievalError
from research_rl.methods.base import Method
from research_rl.metrics import normalize_answer
from research_rl.retrieval import RetrievalClient
from research_rl.rollout import Generate, HFCodec, rollout
from research_rl.scoring import trajectory_metrics
from research_rl.types import Budget, StopReason


async def evaluate(
    method: Method, codec: HFCodec, questions: Sequence[dict[str, Any]], budget: Budget, generate: Generate,
    client: RetrievalClient, concurrency: int = 64,
) -> list[dict[str, Any]]:  # fmt: skip
    """Roll out every question; return one record per question, in order.

    A question that an outage of the service spoilt has `stop_reason` retrieval_failed and no metrics: it counts in no mean.
    """
    gate = asyncio.Semaphore(concurrency)
    progress = tqdm(total=len(questions), unit="question", disable=None)

    async def one(row: dict[str, Any]) -> dict[str, Any]:
        prompt = codec.encode_prompt(method.prompt(row["question"]), method.prefill)
        base = {"id": row["id"], "golden_answers": row["golden_answers"], "split": "test", "step": 0}
        async with gate:
            try:
                trajectory = await rollout(method, codec, row["question"], prompt, budget, generate, client.search)
            except RetrievalError as error:
                return {
                    **base,
                    "question": row["question"],
                    "stop_reason": str(StopReason.RETRIEVAL_FAILED),
                    "error": str(error),
                }
            finally:
                progress.update()
        return {**base, **trajectory.to_json(), "answer": method.answer(trajectory) or "",
                "metrics": trajectory_metrics(method, trajectory, row["golden_answers"])}  # fmt: skip

    try:
        return list(await asyncio.gather(*(one(row) for row in questions)))
    finally:
        progress.close()


async def answer_recall(questions: Sequence[dict[str, Any]], client: RetrievalClient, top_k: int) -> list[bool]:
    """Return, per question, whether a golden answer occurs as whole words in the top-k passages for the bare question."""
    found: list[bool] = []
    for start in tqdm(range(0, len(questions), 64), unit="batch", disable=None):
        batch = questions[start : start + 64]
        for row, passages in zip(batch, await client.search([row["question"] for row in batch], top_k), strict=True):
            text = f" {normalize_answer(' '.join(passage.contents for passage in passages))} "
            found.append(any(f" {normalize_answer(golden)} " in text for golden in row["golden_answers"]))
    return found
