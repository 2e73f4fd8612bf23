"""Clients that leave before they are answered: nothing is searched for them, and nobody else loses an answer."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from rag_serving.batching import Batcher
from rag_serving.leaving import ClientLeft, WhileWaiting
from rag_serving.retrievers.base import Hit, Retriever
from tests.servers import in_thread
from tests.unit.test_batching import Engine, answer, ask, thread  # noqa: F401


class Held(Retriever):
    """Answers once it is let, and keeps what it was asked."""

    size = 1

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun, self.let = threading.Event(), threading.Event()
        self.let.set()

    def search(self, queries, k):
        self.asked += queries
        self.begun.set()
        self.let.wait(20)
        return [[Hit(query, query, 1.0)] for query in queries]


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def url(held) -> Iterator[str]:
    with in_thread(held, max_batch=1) as url:
        held.asked.clear()
        held.begun.clear()
        held.let.clear()
        yield url
        held.let.set()


async def metric(client: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def until(condition) -> None:
    """Wait until the coroutine function says so."""
    for _ in range(500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("never")


def post(client: httpx.AsyncClient, *queries: str) -> asyncio.Task:
    return asyncio.create_task(client.post("/batch_search", json={"query": list(queries)}))


async def test_queries_of_clients_that_have_left_are_not_searched_but_those_that_others_wait_for_are(held, url):
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        before, left = (
            await metric(client, 'rag_abandoned_total{index="default"}'),
            'rag_requests_total{path="/batch_search",status="499"}',
        )
        requests = await metric(client, left)
        running = post(client, "running")
        await asyncio.to_thread(held.begun.wait, 10)
        leaving = [post(client, "only mine", "shared"), post(client, "mine, too"), running]
        await until(lambda: queued(client, 3))
        staying = [post(client, "shared", "last"), post(client, "running")]
        await until(lambda: queued(client, 4))
        for task in leaving:
            task.cancel()
        await until(lambda: queued(client, 2))
        assert await metric(client, 'rag_abandoned_total{index="default"}') - before == 2
        assert await metric(client, left) - requests == 3
        held.let.set()
        answers = [(await task).json() for task in staying]
        assert [[hits[0]["id"] for hits in found] for found in answers] == [["shared", "last"], ["running"]]
        assert held.asked == ["running", "shared", "last"]


async def queued(client: httpx.AsyncClient, count: int) -> bool:
    return await metric(client, 'rag_queued{index="default"}') == count


async def test_what_was_searched_for_a_client_that_left_is_kept_for_when_it_asks_again(held, url):
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        running = post(client, "running")
        await asyncio.to_thread(held.begun.wait, 10)
        requests = await metric(client, left := 'rag_requests_total{path="/batch_search",status="499"}')
        running.cancel()

        async def gone():
            return await metric(client, left) == requests + 1

        await until(gone)
        held.let.set()
        again = await client.post("/v1/search", json={"queries": ["running"], "top_k": 10})
        if not again.json()["cached"][0]:  # joined
            again = await client.post("/v1/search", json={"queries": ["running"], "top_k": 10})
        assert again.json()["cached"] == [True]
        assert held.asked == ["running"]


async def test_a_queue_of_clients_that_have_left_has_room_for_others(held):
    with in_thread(held, max_batch=1, max_queue=2, max_queries=2) as url:
        held.asked.clear()
        held.begun.clear()
        held.let.clear()
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            running = post(client, "running")
            await asyncio.to_thread(held.begun.wait, 10)
            full = post(client, "a", "b")
            await until(lambda: queued(client, 2))
            assert (await client.post("/batch_search", json={"query": ["c", "d"]})).status_code == 429
            full.cancel()
            await until(lambda: queued(client, 0))
            fits = post(client, "c", "d")
            await until(lambda: queued(client, 2))
            held.let.set()
            assert [task.status_code for task in (await running, await fits)] == [200, 200]
            assert held.asked == ["running", "c", "d"]


async def test_leaving_takes_nothing_from_others_of_the_same_request_or_k(thread):  # noqa: F811
    engine = Engine()
    engine.gate.clear()
    batcher = Batcher(engine.search, thread, max_batch=2)
    first = batcher.submit(["first"], 1)
    await asyncio.sleep(0.02)
    leaving = [job for job, _ in batcher.submit(["a", "b", "a", "c"], 1)]
    alone = [job for job, _ in batcher.submit(["d"], 2)]
    staying = batcher.submit(["b", "e"], 1)
    assert batcher.leave([*leaving, *alone, first[0][0]]) == 3  # a, c and d; first is with the engine
    assert batcher.queued == 2
    engine.gate.set()
    assert [await batcher.result(job) for job, _ in [*first, *staying]] == [answer(q, 1) for q in ("first", "b", "e")]
    assert sorted(query for queries, _ in engine.batches for query in queries) == ["b", "e", "first"]
    await batcher.drain()
    assert await ask(Batcher(engine.search, thread), ["a"], 1) == [answer("a", 1)]


async def test_who_leaves_while_a_batch_waits_for_company_leaves_no_empty_batch(thread):  # noqa: F811
    engine = Engine()
    batcher = Batcher(engine.search, thread, max_batch=8, max_wait_s=0.03)
    jobs = [job for job, _ in batcher.submit(["a"], 1)]
    await asyncio.sleep(0.01)
    batcher.leave(jobs)
    await asyncio.sleep(0.04)
    assert engine.batches == []
    assert await ask(batcher, ["b"], 1) == [answer("b", 1)]


async def test_an_answer_in_time_is_not_disturbed_and_one_that_nobody_waits_for_is_cancelled(monkeypatch):
    monkeypatch.setattr("rag_serving.leaving.LOOKED_AFTER_S", 0.01)
    gone = asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    with WhileWaiting(receive):
        await asyncio.sleep(0.03)
    begun = time.monotonic()
    asyncio.get_running_loop().call_later(0.03, gone.set)
    with pytest.raises(ClientLeft), WhileWaiting(receive):
        await asyncio.sleep(10)
    assert time.monotonic() - begun < 5
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)  # no cancellation is left over
