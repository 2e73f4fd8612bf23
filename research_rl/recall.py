"""What retrieval alone can give: where the first passage with an answer stands, for the bare question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research_rl.errors import missing_extra
from research_rl.metrics import answer_rank
from research_rl.retrieval import RetrievalClient

try:
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise missing_extra("tqdm", "eval") from error

_BATCH = 64  # questions of a request


async def answer_recall(questions: Sequence[Mapping[str, Any]], client: RetrievalClient, top_k: int) -> list[int]:
    """Return, per question, the rank (from 1) of the first passage for the bare question that has a golden answer as whole words; or 0."""
    found: list[int] = []
    for start in tqdm(range(0, len(questions), _BATCH), unit="batch", disable=None):
        batch = questions[start : start + _BATCH]
        for row, passages in zip(batch, await client.search([row["question"] for row in batch], top_k), strict=True):
            found.append(answer_rank((passage.contents for passage in passages), row["golden_answers"]))
    return found
