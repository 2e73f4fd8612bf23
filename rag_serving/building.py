"""Large answers are built in a thread: while one is built in the event loop, nobody else is answered.

What a passage costs, in microseconds, by what is done with it: measured with passages of 100 words, rounded up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from rag_serving.retrievers.base import Hit

COPIED_US, DECODED_US, EXCLUDED_US, MATCHED_US, SNIPPET_US = 0.8, 5, 13, 25, 45
LONG_US = 5_000  # what takes longer is done in a thread, which costs a tenth of a millisecond

Made = TypeVar("Made")


async def aside(make: Callable[[], Made], passages: int, each_us: float) -> Made:
    """Return `make()`, made in a thread where that takes long."""
    return make() if passages * each_us < LONG_US else await asyncio.to_thread(make)


async def built(form: Callable[..., Any], each_us: float, results: list[list[Hit]], *beside: Sequence[Any]) -> list[Any]:
    """Return each query's hits, with what stands beside them, in a form for orjson; already encoded, query by query, where that takes long.

    One call of orjson holds Python's lock from beginning to end: for a whole answer that would be as long as in the event loop.
    """
    if sum(map(len, results)) * each_us < LONG_US:
        return list(map(form, results, *beside))
    return await asyncio.to_thread(lambda: [orjson.Fragment(orjson.dumps(told)) for told in map(form, results, *beside)])
