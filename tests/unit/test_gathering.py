"""Searches that share a request: who gets what, and that nobody pays for another's query."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl import gathering
from research_rl.errors import QueryFailedError, RetrievalError, WrongServiceError
from research_rl.gathering import Gatherer
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.types import Passage


def found(queries: list[str], top_k: int) -> list[list[Passage]]:
    return [[Passage(f"{query} {i}", query, 1.0) for i in range(top_k)] for query in queries]


class Service:
    """Answers like ReSearch's service; `refuse(queries)` may give another status. Keeps what it was asked; holds answers back until let."""

    def __init__(self, refuse=lambda queries: None) -> None:
        self.asked: list[list[str]] = []
        self.refuse, self.let, self.left = refuse, asyncio.Event(), 0
        self.let.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body["query"])
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        if answer := self.refuse(body["query"]):
            return answer if isinstance(answer, httpx.Response) else httpx.Response(answer)
        rows = found(body["query"], body["top_n"])
        documents = [[{"id": passage.id, "contents": passage.contents} for passage in row] for row in rows]
        return httpx.Response(200, json=[documents, [[1.0] * body["top_n"]] * len(rows)])

    def client(self, **options) -> RetrievalClient:
        return RetrievalClient(RetrievalSettings("http://test:1", **{"deadline_s": 5.0, **options}), httpx.MockTransport(self))


async def under_way(service: Service, client: RetrievalClient) -> asyncio.Task:
    """Make the service known, and return a search that is under way, so that what follows gathers."""
    await client.search(["known"], 1)
    service.let.clear()
    first = asyncio.create_task(client.search(["first"], 1))
    while len(service.asked) < 2:
        await asyncio.sleep(0)
    service.asked.clear()
    return first


def searching(client: RetrievalClient, *queries: str, top_k: int = 1) -> asyncio.Task:
    return asyncio.create_task(client.search(list(queries), top_k))


@settings(max_examples=40, deadline=None)
@given(
    searches=st.lists(
        st.tuples(st.lists(st.text("ab", min_size=1, max_size=3), max_size=5), st.integers(1, 2), st.integers(0, 3)),
        max_size=25,
    ),
    most=st.integers(1, 6),
)
def test_everybody_gets_the_answers_to_their_own_queries_in_order_and_no_request_is_too_large(searches, most):
    async def run():
        asked = []

        async def post(queries, top_k):
            asked.append(queries)
            await asyncio.sleep(0.001 * len(queries[-1:]))
            return found(queries, top_k)

        gatherer = Gatherer(post)
        gatherer.most = most

        async def search(queries, top_k, late):
            await asyncio.sleep(0.001 * late)
            return await gatherer.search(queries, top_k)

        answers = await asyncio.gather(*(search(*one) for one in searches))
        assert answers == [found(queries, top_k) for queries, top_k, _ in searches]
        own = [queries for queries, _, _ in searches]
        assert all(len(queries) <= most or queries in own for queries in asked)
        assert sorted(q for queries in asked for q in queries) == sorted(q for queries in own for q in queries)

    asyncio.run(run())


async def test_a_search_goes_at_once_where_none_is_under_way_and_others_gather_meanwhile(monkeypatch):
    monkeypatch.setattr(gathering, "GATHERED_S", 3600)  # only a full request is sent
    service = Service()
    async with service.client() as client:
        first = await under_way(service, client)
        tasks = [searching(client, str(i)) for i in range(64)]
        other_k = [searching(client, str(i), top_k=2) for i in range(64)]
        while len(service.asked) < 2:
            await asyncio.sleep(0)
        service.let.set()
        assert [await task for task in tasks] == [found([str(i)], 1) for i in range(64)]
        assert [await task for task in other_k] == [found([str(i)], 2) for i in range(64)]
        assert await first == found(["first"], 1)
        assert [len(queries) for queries in service.asked] == [64, 64]
        assert await client.search(["alone again"], 1) == found(["alone again"], 1)


async def gathered(client: RetrievalClient, service: Service, *queries: str) -> list:
    """Search for these in one request; return answers and errors."""
    first = await under_way(service, client)
    tasks = [searching(client, query) for query in queries]
    while not service.asked:
        await asyncio.sleep(0.001)
    assert service.asked == [list(queries)]
    service.let.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_refused_query_is_refused_alone():
    service = Service(lambda queries: 422 if "bad" in queries else None)
    async with service.client() as client:
        good, bad, fine = await gathered(client, service, "good", "bad", "fine")
        assert (good, fine) == (found(["good"], 1), found(["fine"], 1))
        assert isinstance(bad, QueryFailedError)
        assert "refused 1 queries" in str(bad)
        assert client.outage_s == 0
        assert client._gatherer.most == gathering.MOST


async def test_a_query_on_which_the_service_fails_does_not_fail_the_others():
    service = Service(lambda queries: 500 if "poison" in queries else None)
    async with service.client(deadline_s=1.5) as client:
        good, poison, fine = await gathered(client, service, "good", "poison", "fine")
        assert (good, fine) == (found(["good"], 1), found(["fine"], 1))
        assert isinstance(poison, QueryFailedError)
        assert "the first query: 'poison'" in str(poison)


@pytest.mark.parametrize("fault", [503, 429, httpx.Response(200, json=[[], []]), httpx.Response(200, text="<html>")])
async def test_an_outage_is_waited_out_by_each_of_those_who_share_a_request(fault):
    service = Service(lambda queries: fault if len(queries) > 1 else None)
    async with service.client() as client:
        assert await gathered(client, service, "a", "b") == [found(["a"], 1), found(["b"], 1)]
        assert client.outage_s == 0


async def test_an_outage_that_does_not_end_is_an_error_for_each():
    service = Service(lambda queries: None if queries in (["known"], ["first"]) else 503)
    async with service.client(deadline_s=0.5) as client:
        errors = await gathered(client, service, "a", "b")
        assert [type(error) for error in errors] == [RetrievalError, RetrievalError]
        assert errors[0] is not errors[1]
        assert client.outage_s > 0


async def test_the_wrong_service_is_one_for_each():
    service = Service(lambda queries: 401 if len(queries) > 1 else None)
    async with service.client() as client:
        errors = await gathered(client, service, "a", "b")
        assert [type(error) for error in errors] == [WrongServiceError, WrongServiceError]


async def test_a_service_that_takes_fewer_queries_at_once_is_sent_fewer():
    service = Service(lambda queries: 413 if len(queries) > 2 else None)
    async with service.client() as client:
        assert await gathered(client, service, *"abcd") == [found([query], 1) for query in "abcd"]
        service.asked.clear()
        first = await under_way(service, client)
        tasks = [searching(client, query) for query in "efgh"]
        while len(service.asked) < 2:
            await asyncio.sleep(0.001)
        service.let.set()
        await asyncio.gather(first, *tasks)
        assert service.asked == [["e", "f"], ["g", "h"]]


async def test_who_gives_up_leaves_the_others_their_answer_and_a_request_nobody_waits_for_ends():
    service = Service()
    async with service.client() as client:
        first = await under_way(service, client)
        staying, leaving = searching(client, "a"), searching(client, "b")
        while not service.asked:
            await asyncio.sleep(0.001)
        lonely = searching(client, "c")
        while len(service.asked) < 2:
            await asyncio.sleep(0.001)
        leaving.cancel()
        lonely.cancel()
        await asyncio.sleep(0.01)
        assert service.left == 1
        unsent = searching(client, "d")
        await asyncio.sleep(0)
        unsent.cancel()
        await asyncio.sleep(0.01)
        service.let.set()
        assert await staying == found(["a"], 1)
        await first
        assert service.asked == [["a", "b"], ["c"]]
        assert client._gatherer._open == {}


async def test_nothing_is_gathered_before_the_service_is_known():
    service = Service()
    async with service.client() as client:
        await asyncio.gather(*(searching(client, query) for query in "abc"))
        assert service.asked == [["a"], ["b"], ["c"]]
