"""The batcher: what is merged, what is joined, what is refused, and that nobody gets another's answer."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_serving import ServingError
from rag_serving.batching import Batcher, EngineHangs, Overloaded
from rag_serving.cache import AnswerCache, DiskCached
from rag_serving.retrievers.base import Hit, Retriever


def answer(query: str, k: int) -> list[Hit]:
    """Return what the engine would answer."""
    return [Hit(f"{query}/{i}", query, float(k - i)) for i in range(k)]


class Engine:
    """Answers, slowly if told to, and keeps what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[tuple[list[str], int]] = []
        self.seconds, self.gate = seconds, threading.Event()
        self.gate.set()

    def search(self, queries, k):
        self.gate.wait(10)
        time.sleep(self.seconds)
        self.batches.append((list(queries), k))
        return [answer(query, k) for query in queries]


async def ask(batcher: Batcher, queries: list[str], k: int) -> list[list[Hit]]:
    """Submit and wait."""
    return [await batcher.result(job) for job, _ in batcher.submit(queries, k)]


async def occupied(thread, *queries, **options):
    """Return an engine whose gate is closed, its batcher, and the jobs of the queries, which the engine has."""
    engine = Engine()
    engine.gate.clear()
    batcher = Batcher(engine.search, thread, **options)
    jobs = batcher.submit(queries, 1)
    await asyncio.sleep(0.02)
    return engine, batcher, jobs


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), st.integers(1, 3)), min_size=1, max_size=20
    ),
    max_batch=st.integers(1, 8),
    deduplicate=st.booleans(),
)
def test_every_request_gets_its_own_answers_in_order(requests, max_batch, deduplicate):
    async def run():
        engine = Engine()
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(engine.search, pool, max_batch=max_batch, deduplicate=deduplicate)
            found = await asyncio.gather(*(ask(batcher, queries, k) for queries, k in requests))
            await batcher.drain()
        assert found == [[answer(query, k) for query in queries] for queries, k in requests]
        assert all(len(queries) <= max_batch for queries, _ in engine.batches)

    asyncio.run(run())


async def test_what_gathers_while_the_engine_is_busy_is_searched_together(thread):
    engine = Engine()
    engine.gate.clear()
    batcher = Batcher(engine.search, thread, max_batch=16)
    tasks = [asyncio.create_task(ask(batcher, [f"q{i}"], 2)) for i in range(11)]
    await asyncio.sleep(0.05)
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert [len(queries) for queries, _ in engine.batches] in ([11], [1, 10])


async def test_an_identical_query_in_flight_is_joined_whether_it_waits_or_is_being_searched(thread):
    engine = Engine(0.05)
    batcher = Batcher(engine.search, thread, max_batch=4)
    first = batcher.submit(["same", "same"], 1)
    await asyncio.sleep(0.02)
    again = batcher.submit(["same"], 1)
    other_k = batcher.submit(["same"], 2)
    assert [known for _, known in [*first, *again, *other_k]] == [False, True, True, False]
    results = [await batcher.result(job) for job, _ in [*first, *again, *other_k]]
    assert results == [answer("same", 1)] * 3 + [answer("same", 2)]
    assert engine.batches == [(["same"], 1), (["same"], 2)]
    assert batcher.submit(["same"], 1)[0][1] is False  # answered: asked anew
    await batcher.drain()


async def test_a_request_that_does_not_fit_is_refused_whole_and_disturbs_nobody(thread):
    engine, batcher, running = await occupied(thread, "a", max_batch=1, max_queue=3)
    waiting = batcher.submit(["b", "c"], 1)
    with pytest.raises(Overloaded) as refused:
        batcher.submit(["d", "e"], 1)
    assert refused.value.retry_after_s >= 1
    fits = batcher.submit(["d", "b", "c"], 1)  # b and c are joined: one place is enough
    engine.gate.set()
    assert [await batcher.result(job) for job, _ in [*running, *waiting, *fits]] == [answer(q, 1) for q in "abcdbc"]
    assert batcher.queued == 0


async def test_where_the_queue_is_full_the_largest_request_makes_way_for_a_smaller_one(thread):
    engine, batcher, running = await occupied(thread, "first", max_batch=1, max_queue=8)
    large = batcher.submit(["l0", "l1", "l2", "l3", "l4"], 1)
    middle = batcher.submit(["m0", "m1", "m2"], 2)
    joined = batcher.submit(["l4"], 1)
    small = batcher.submit(["s0", "s1"], 1)
    with pytest.raises(Overloaded):  # nobody who waits asks for more than this
        batcher.submit(["n0", "n1", "n2", "n3", "n4"], 1)
    engine.gate.set()
    told = await asyncio.gather(*(batcher.result(job) for job, _ in large), return_exceptions=True)
    assert [type(one) for one in told[:4]] == [Overloaded] * 4
    assert told[4] == answer("l4", 1)  # for another request has joined it
    for (job, _), query in zip(
        [*running, *middle, *joined, *small], ["first", "m0", "m1", "m2", "l4", "s0", "s1"], strict=True
    ):
        assert await batcher.result(job) == answer(query, 2 if query[0] == "m" else 1)
    assert batcher.queued == 0
    await batcher.drain()


async def test_a_request_that_shares_a_query_with_the_one_that_makes_way_for_it_is_answered(thread):
    engine, batcher, running = await occupied(thread, "first", max_batch=1, max_queue=5)
    batcher.submit(["l0", "l1", "l2", "l3", "l4"], 1)
    small = batcher.submit(["l0", "new"], 1)
    engine.gate.set()
    assert [await batcher.result(job) for job, _ in [*running, *small]] == [
        answer(query, 1) for query in ("first", "l0", "new")
    ]


@pytest.mark.parametrize("k", [1, 2])
async def test_a_request_of_many_queries_does_not_make_others_wait_for_all_of_them(thread, k):
    engine, batcher, first = await occupied(thread, "first", max_batch=4)
    large = batcher.submit([f"large {i}" for i in range(40)], 1)
    small = batcher.submit(["small one", "small two"], k)
    engine.gate.set()
    for job, _ in [*first, *large, *small]:
        await batcher.result(job)
    asked = [query for queries, _ in engine.batches for query in queries]
    assert max(asked.index("small one"), asked.index("small two")) <= 1 + 2 * 4


async def test_long_queries_take_more_places_of_a_batch(thread):
    engine = Engine()
    engine.gate.clear()
    batcher = Batcher(engine.search, thread, max_batch=8)
    queries = ["first", *(str(i) + "x" * 800 for i in range(4)), *map(str, range(8))]
    jobs = batcher.submit(queries[:1], 1)
    await asyncio.sleep(0.02)
    jobs += batcher.submit(queries[1:], 1)
    engine.gate.set()
    assert [await batcher.result(job) for job, _ in jobs] == [answer(query, 1) for query in queries]
    assert [len(batch) for batch, _ in engine.batches] == [1, 2, 2, 8]


async def test_when_the_engine_hangs_all_who_wait_are_told_and_it_goes_on_when_it_answers_again(thread):
    engine, told = Engine(), []
    engine.gate.clear()
    batcher = Batcher(engine.search, thread, max_batch=1, timeout_s=0.05, on_hang=told.append)
    for job, _ in batcher.submit(["a", "b", "c"], 1):
        with pytest.raises(EngineHangs, match=r"0\.05 s"):
            await batcher.result(job)
    assert (batcher.hangs, batcher.queued, told) == (True, 0, [True])
    with pytest.raises(EngineHangs):
        batcher.submit(["d"], 1)
    engine.gate.set()
    while batcher.hangs:
        await asyncio.sleep(0.01)
    assert told == [True, False]
    assert await ask(batcher, ["a"], 1) == [answer("a", 1)]
    assert engine.batches == [(["a"], 1), (["a"], 1)]
    await batcher.drain()


async def test_giving_up_does_not_take_the_answer_from_others_who_wait_for_it(thread):
    engine = Engine(0.05)
    batcher = Batcher(engine.search, thread)
    impatient = asyncio.create_task(ask(batcher, ["q"], 1))
    patient = asyncio.create_task(ask(batcher, ["q"], 1))
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert await patient == [answer("q", 1)]
    assert len(engine.batches) == 1


async def test_one_bad_query_does_not_spoil_the_others_of_its_batch(thread):
    gate = threading.Event()

    def search(queries, k):
        gate.wait(5)
        if "bad" in queries:
            raise KeyError("bad")
        return [answer(query, k) for query in queries]

    batcher = Batcher(search, thread, max_batch=8)
    jobs = [batcher.submit([query], 1)[0][0] for query in ("first", "good", "bad", "fine")]
    gate.set()
    assert [await batcher.result(job) for job in (jobs[0], jobs[1], jobs[3])] == [
        answer(q, 1) for q in ("first", "good", "fine")
    ]
    with pytest.raises(KeyError):
        await batcher.result(jobs[2])


async def test_an_engine_that_is_down_fails_a_batch_once(thread):
    calls = []

    def search(queries, k):
        calls.append(len(queries))
        raise ServingError("the web is down")

    batcher = Batcher(search, thread, max_batch=8)
    jobs = batcher.submit(["a", "b", "c"], 1)
    for job, _ in jobs:
        with pytest.raises(ServingError):
            await batcher.result(job)
    assert calls == [3]


async def test_an_engine_that_answers_too_few_is_an_error_not_another_querys_answer(thread):
    batcher = Batcher(lambda queries, k: [answer("x", 1)] * (len(queries) - 1), thread)
    for job, _ in batcher.submit(["a", "b"], 1):
        with pytest.raises(RuntimeError, match="0 results to 1"):
            await batcher.result(job)


@pytest.mark.parametrize("deduplicate", [True, False])
async def test_draining_answers_what_was_admitted(thread, deduplicate):
    engine = Engine(0.02)
    batcher = Batcher(engine.search, thread, max_batch=1, deduplicate=deduplicate)
    jobs = batcher.submit([str(i) for i in range(5)], 1)
    await batcher.drain()
    assert all(job.done.done() for job, _ in jobs)


async def test_when_the_engines_thread_is_gone_nobody_waits_for_ever():
    pool = ThreadPoolExecutor(1)
    batcher = Batcher(Engine().search, pool)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        await batcher.result(batcher.submit(["q"], 1)[0][0])


async def test_waiting_for_company_fills_a_batch(thread):
    engine = Engine()
    batcher = Batcher(engine.search, thread, max_batch=8, max_wait_s=0.1)
    tasks = []
    for i in range(4):
        tasks.append(asyncio.create_task(ask(batcher, [str(i)], 1)))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    assert [len(queries) for queries, _ in engine.batches] == [4]


def test_the_cache_forgets_the_least_recently_used_and_keeps_to_its_size():
    cache = AnswerCache(0.01)
    for i in range(50):
        cache.put(str(i), 1, answer(str(i), 1))
        cache.find("0", 1)
    assert ("0", 1) in cache
    assert ("1", 1) not in cache
    assert cache.currsize <= 0.01 * 1e6
    assert cache.find("0", 1) == answer("0", 1)
    cache.put("huge", 1, [Hit("h", "x" * 100_000, 1.0)])
    assert ("huge", 1) not in cache
    assert AnswerCache(0).find("a", 1) is None


@pytest.mark.parametrize("character", ["a", "é", "日", "😀"])
def test_the_cache_counts_the_queries_that_it_is_asked_by(character):
    cache = AnswerCache(1)
    for i in range(200):
        cache.put(f"{i}{character * 20_000}", 1, [])
    assert sum(sys.getsizeof(query) for query, _ in cache) <= 1e6


def test_the_disk_cache_answers_after_a_restart_and_only_for_the_same_index_and_settings(tmp_path):
    class Counting(Retriever):
        size, asked = 1, 0

        def search(self, queries, k):
            self.asked += len(queries)
            return [answer(query, k) for query in queries]

    for fingerprint, asked in (("one", 2), ("one", 0), ("two", 2)):
        engine = Counting()
        cached = DiskCached(engine, tmp_path, fingerprint)
        assert cached.search(["a", "b"], 2) == [answer("a", 2), answer("b", 2)]
        assert engine.asked == asked
        cached.close()
