"""What retrieval alone achieves: the rank of the first passage with an answer, if the question itself is the query."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from research_rl.errors import missing_extra
from research_rl.metrics import answer_rank
from research_rl.retrieval import RetrievalClient
from research_rl.rollout import SearchFunction
from research_rl.types import Passage

_BATCH = 64  # queries of a request
Asked = TypeVar("Asked")


async def searched(
    asked: Sequence[Asked], query_of: Callable[[Asked], str], search: SearchFunction, top_k: int, extra: str
) -> AsyncIterator[tuple[Asked, list[Passage]]]:
    """Yield each of `asked` with what its query finds, in order, and show the progress.

    Raises:
        MissingExtraError: tqdm is not installed; it comes with `extra`.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra("tqdm", extra) from error
    for start in tqdm(range(0, len(asked), _BATCH), unit="batch", disable=None):
        batch = asked[start : start + _BATCH]
        for one, passages in zip(batch, await search([query_of(one) for one in batch], top_k), strict=True):
            yield one, passages


async def answer_recall(questions: Sequence[Mapping[str, Any]], client: RetrievalClient, top_k: int) -> list[int]:
    """Return, per question, the rank (from 1) of the first passage with a golden answer as whole words, or 0; the question is the query."""
    return [
        answer_rank((passage.contents for passage in passages), row["golden_answers"])
        async for row, passages in searched(questions, lambda row: row["question"], client.search, top_k, "eval")
    ]
