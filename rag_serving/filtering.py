"""A search that leaves hits out: more is searched for, until k are left of every query or a bound is reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from rag_serving.retrievers.base import Hit
from rag_serving.service import Answer


@dataclass(frozen=True, slots=True)
class Filtered:
    """The hits that are left, at most k per query. Also per query: how many hits were left out, and whether the bound was met, that is,
    whether fewer than k are left although as many hits were looked at as may be, and others may lie beyond.
    """

    answer: Answer
    left_out: list[int]
    bound_met: list[bool]


async def search_until(
    k: int,
    bound: int,
    search: Callable[[int], Awaitable[Answer]],
    kept: Callable[[Answer], Awaitable[list[list[Hit]]]],
) -> Filtered:
    """Search for some more than k, then for many more, then for `bound` (≥ k) hits a query, until k are left of every one.

    `search` returns up to so many hits of every query, `kept` those of them that are not left out.
    """
    depths = iter(sorted({min(bound, depth) for depth in (k + 10, 10 * k + 100, bound)}))
    while True:
        depth = next(depths)
        answer = await search(depth)
        left = await kept(answer)
        short = [len(rest) < k and len(hits) >= depth for rest, hits in zip(left, answer.hits, strict=True)]
        if depth == bound or not any(short):
            left_out = [len(hits) - len(rest) for rest, hits in zip(left, answer.hits, strict=True)]
            return Filtered(replace(answer, hits=[rest[:k] for rest in left]), left_out, short)
