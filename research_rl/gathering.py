"""Sends searches that many rollouts make at about the same time as one request: HTTP costs client and service more than the search.

A search is sent at once if no other is under way. Otherwise searches with the same `top_k` are gathered for `GATHERED_S`, up to `MOST`
queries. If their request meets an outage, all of them fail with it. If the service refuses the request, each search is sent again by
itself, so that one bad query does not fail the others.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from research_rl.errors import QueryFailedError
from research_rl.types import Passage

MOST = 64  # queries in a request
GATHERED_S = 0.002  # seconds

Found = list[list[Passage]]
Post = Callable[[list[str], int], Awaitable[Found]]


@dataclass(eq=False)
class _Request:
    """Searches that are sent together; a future's result is None if its search must be sent again by itself."""

    top_k: int
    searches: list[tuple[list[str], asyncio.Future[Found | None]]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    sending: asyncio.Task[None] | None = None

    @property
    def queries(self) -> list[str]:
        return [query for queries, _ in self.searches for query in queries]


class Gatherer:
    """Sends searches by `post(queries, top_k)`. Belongs to one event loop."""

    def __init__(self, post: Post) -> None:
        self._post, self._under_way = post, 0
        self._open: dict[int, _Request] = {}  # requests that are not sent yet, by top_k
        self.most = MOST

    async def alone(self, queries: list[str], top_k: int) -> Found:
        """Send these queries as a request of their own. Raises what `post` raises."""
        self._under_way += 1
        try:
            return await self._post(queries, top_k)
        finally:
            self._under_way -= 1

    async def search(self, queries: list[str], top_k: int) -> Found:
        """Send these queries, with others if there are any. Raises what `post` raises."""
        if not self._under_way or len(queries) >= self.most:
            return await self.alone(queries, top_k)
        request = self._open.get(top_k)
        if request is not None and len(request.queries) + len(queries) > self.most:
            self._send(request)
            request = None
        loop = asyncio.get_running_loop()
        if request is None:
            request = self._open[top_k] = _Request(top_k)
            request.timer = loop.call_later(GATHERED_S, self._send, request)
        answer: asyncio.Future[Found | None] = loop.create_future()
        request.searches.append((queries, answer))
        if len(request.queries) >= self.most:
            self._send(request)
        try:
            found = await answer
        finally:
            self._end_if_deserted(request)
        return await self.alone(queries, top_k) if found is None else found

    def _send(self, request: _Request) -> None:
        assert request.timer is not None
        request.timer.cancel()
        del self._open[request.top_k]
        request.searches = [(queries, answer) for queries, answer in request.searches if not answer.done()]
        if request.searches:
            request.sending = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: _Request) -> None:
        queries = request.queries
        try:
            found = iter(await self.alone(queries, request.top_k))
        except QueryFailedError as error:
            together = len(request.searches) > 1
            for _, answer in request.searches:
                if not answer.done():
                    answer.set_result(None) if together else answer.set_exception(error)
        except Exception as error:
            for _, answer in request.searches:
                if not answer.done():
                    answer.set_exception(copy.copy(error))  # every search raises a copy of its own
        else:
            for asked, answer in request.searches:
                mine = [next(found) for _ in asked]
                if not answer.done():
                    answer.set_result(mine)

    def _end_if_deserted(self, request: _Request) -> None:
        """Cancel a request that nobody waits for any more, whether it is sent or not."""
        if not all(answer.done() for _, answer in request.searches):
            return
        if request.sending is not None:
            request.sending.cancel()
        elif request.timer is not None and self._open.get(request.top_k) is request:
            request.timer.cancel()
            del self._open[request.top_k]
