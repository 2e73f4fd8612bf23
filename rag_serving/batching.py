"""Requests of all clients, merged into batches for the retriever's one thread.

Admission is all or nothing: a request's queries enter the queue together, or `Overloaded` is raised. Where the queue is full, the largest
of the waiting requests makes way for a smaller one.
A query that is already queued or being searched is joined, not repeated; where answers are nested (`Retriever.nested_to`), also by one
for fewer hits. One that nobody waits for any more is taken out again (`leave`). A batch holds queries of one k only, so that no answer
depends on what the other queries of its batch ask for (the last bits of a dense engine's scores may depend on how many they are).
Requests take turns, one query each, and so do the values of k: a request of a thousand queries does not make others wait for all of them.
While a batch is searched the next one gathers; that is batching enough under load, so `max_wait_s` is 0 unless set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rag_serving import ServingError
from rag_serving.cache import Key, answer_key
from rag_serving.retrievers.base import Hit

log = logging.getLogger("rag_serving")

Search = Callable[[Sequence[str], int], list[list[Hit]]]

TURNS = 3  # of the event loop, before a batch is taken; measured: more gather no more
CHARACTERS_PER_PLACE = 200  # a longer query takes several places of a batch, so that a batch of long ones holds nobody up


class Overloaded(Exception):
    """The queue is full; `retry_after_s` is when half of it should be gone."""

    def __init__(self, queued: int, retry_after_s: int) -> None:
        super().__init__(f"{queued} queries are waiting; try again in {retry_after_s} s")
        self.queued, self.retry_after_s = queued, retry_after_s


class EngineHangs(Exception):
    """The engine has been searching one batch for longer than it may."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the engine has not answered a batch within engine_timeout_s, {timeout_s:g} s")
        self.timeout_s = timeout_s

    def __reduce__(self):  # picklable across processes
        return (type(self), (self.timeout_s,))


@dataclass(slots=True, eq=False)
class Job:
    """One query on its way; times are `time.perf_counter()`. `key`: what it is joined by, None where it is not.

    `request` holds it while it waits for its turn; `waiters` is how many wait for its answer.
    """

    query: str
    k: int
    done: asyncio.Future[list[Hit]]
    request: deque[Job]
    key: Key | None = None
    waiters: int = 1
    entered: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    finished: float = 0.0


class Batcher:
    """Feeds `search` from one queue. Make, `submit` and `drain` in one event loop."""

    def __init__(
        self,
        search: Search,
        thread: ThreadPoolExecutor,
        *,
        max_batch: int = 64,
        max_wait_s: float = 0.0,
        max_queue: int = 2048,
        deduplicate: bool = True,
        timeout_s: float | None = None,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_hang: Callable[[bool], None] = lambda hangs: None,
    ) -> None:
        """`thread` has one worker: that alone makes any retriever safe. `on_batch` is told each batch's size and seconds.

        `on_hang` is told True when a batch takes longer than `timeout_s`, and False when the engine answers again.
        """
        self._search, self._thread, self._on_batch = search, thread, on_batch
        self._timeout_s, self._on_hang, self.hangs = timeout_s, on_hang, False
        self._max_batch, self._max_wait_s, self._max_queue, self._deduplicate = max_batch, max_wait_s, max_queue, deduplicate
        self._waiting: dict[int, deque[deque[Job]]] = {}  # by k, requests; of both the first has its turn next
        self._in_flight: dict[Key, Job] = {}  # of a nested query the job with the largest k
        self._running: list[Job] = []
        self._arrived = asyncio.Event()
        self._rate = 100.0  # queries per second, moving average
        self.queued = 0
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._run())

    def submit(self, queries: Sequence[str], k: int, nested_to: int = 0) -> list[tuple[Job, bool]]:
        """Admit queries; return per query its job and whether it joined one already in flight. Await the jobs by `result`.

        `nested_to` is the retriever's. A job that is joined may be for more than k; its first k hits are the answer.

        Raises:
            Overloaded: they do not fit into the queue; none was admitted.
            EngineHangs: it does.
        """
        if self.hangs and self._timeout_s is not None:
            raise EngineHangs(self._timeout_s)
        joined = {query: self._joinable(query, k, nested_to) for query in queries} if self._deduplicate else {}
        new = sum(job is None for job in joined.values()) if self._deduplicate else len(queries)
        if new and self.queued + new > self._max_queue:
            asked = [job for job in joined.values() if job is not None]
            for job in asked:  # what this request joins is not put off for it
                job.waiters += 1
            try:
                self._make_room(new)
            finally:
                for job in asked:
                    job.waiters -= 1
        loop = asyncio.get_running_loop()
        jobs, admitted = [], deque[Job]()
        for query in queries:
            job = joined.get(query)
            if known := job is not None:
                job.waiters += 1
                jobs.append((job, known))
                continue
            job = Job(query, k, loop.create_future(), admitted)
            if self._deduplicate:
                job.key = answer_key(query, k, nested_to)
                joined[query] = self._in_flight[job.key] = job
            admitted.append(job)
            jobs.append((job, known))
        if admitted:
            self._waiting.setdefault(k, deque()).append(admitted)
            self.queued += len(admitted)
            self._arrived.set()
        return jobs

    def _make_room(self, new: int) -> None:
        """Put off the largest of the waiting requests, if it is larger than one of `new` queries, and the next: who asks for much cannot
        lock out who asks for little.

        Raises:
            Overloaded: there is no room; nobody was put off.
        """
        full = Overloaded(self.queued, max(1, math.ceil(self.queued / 2 / self._rate)))
        # a query that another request has joined stays
        alone = [[job for job in request if job.waiters == 1] for requests in self._waiting.values() for request in requests]
        room, put_off = self._max_queue - self.queued, list[Job]()
        for jobs in sorted(alone, key=len, reverse=True):
            if room >= new or len(jobs) <= new:
                break
            put_off += jobs
            room += len(jobs)
        if room < new:
            raise full
        for job in put_off:
            self._unqueue(job)
            self._fail(job, full)

    def _unqueue(self, job: Job) -> None:
        job.request.remove(job)
        if not job.request:
            requests = self._waiting[job.k]
            requests.remove(job.request)
            if not requests:
                del self._waiting[job.k]
        self.queued -= 1

    def _joinable(self, query: str, k: int, nested_to: int) -> Job | None:
        job = self._in_flight.get(answer_key(query, k, nested_to))
        return job if job is not None and job.k >= k else None

    @staticmethod
    async def result(job: Job) -> list[Hit]:
        """Return the job's hits. Giving up waiting does not disturb others who wait for the same job.

        Raises:
            EngineHangs: the engine does not answer.
            Exception: whatever the retriever raised.
        """
        if job.done.done():  # as most are of a request of many queries, once its first has been waited for
            return job.done.result()
        return await asyncio.shield(job.done)

    def leave(self, jobs: Sequence[Job]) -> int:
        """Wait no longer for these. Those that nobody else waits for and that are still queued are not searched; return how many.

        Their futures are cancelled.
        """
        taken = 0
        for job in jobs:
            job.waiters -= 1
            if job.waiters or job not in job.request:
                continue
            self._unqueue(job)
            self._forget(job)
            job.done.cancel()
            taken += 1
        return taken

    async def drain(self) -> None:
        """Finish what was admitted, then end."""
        while self.queued or self._running:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        # the task refers to this object: as a cycle, which nothing collects after gc.freeze, they would keep the retriever and its files
        self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self.queued:
                self._arrived.clear()
                await self._arrived.wait()
            if self._max_wait_s:
                await self._company()
            else:  # requests that have arrived already reach the queue within some turns of the loop; to hand over a batch costs more
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            if not self.queued:  # all clients have left
                continue
            self._running = batch = self._take()
            queries, k = [job.query for job in batch], batch[0].k
            started = time.perf_counter()
            results: Sequence[list[Hit] | Exception]
            try:
                search = loop.run_in_executor(self._thread, self._answer, queries, k)
                if not (await asyncio.wait([search], timeout=self._timeout_s))[0]:
                    await self._hang(batch, search)
                    continue
                results = search.result()
            except Exception as error:  # the thread is gone: whoever waits must know
                results = [error] * len(batch)
            finished = time.perf_counter()
            self._on_batch(len(batch), finished - started)
            self._rate = 0.8 * self._rate + 0.2 * len(batch) / max(finished - started, 1e-6)
            for position, job in enumerate(batch):
                job.started, job.finished = started, finished
                result = results[position]
                if isinstance(result, Exception):
                    self._fail(job, result)
                else:
                    self._forget(job)
                    job.done.set_result(result)
            self._running = []

    def _forget(self, job: Job) -> None:
        if job.key is not None and self._in_flight.get(job.key) is job:
            del self._in_flight[job.key]

    def _fail(self, job: Job, error: Exception) -> None:
        self._forget(job)
        job.done.set_exception(error)
        job.done.exception()  # read here: asyncio warns of an exception that nobody has read

    async def _hang(self, batch: list[Job], search: asyncio.Future[Any]) -> None:
        """Tell all who wait that the engine hangs, and wait until it does no longer; that answer has come too late."""
        assert self._timeout_s is not None
        self.hangs = True
        self._on_hang(True)
        waiting = [job for requests in self._waiting.values() for request in requests for job in request]
        self._waiting.clear()
        self.queued = 0
        for job in waiting:
            job.request.clear()
        for job in [*batch, *waiting]:
            self._fail(job, EngineHangs(self._timeout_s))
        self._running = []
        await asyncio.wait([search])
        self.hangs = False
        self._on_hang(False)

    async def _company(self) -> None:
        """Wait until a batch is full, `max_wait_s` at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait_s):
                while self.queued < self._max_batch:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _answer(self, queries: list[str], k: int) -> list[list[Hit] | Exception]:
        """Search a batch, in the retriever's thread. If it fails, try its queries one by one: one must not spoil the others."""
        try:
            results = self._search(queries, k)
            if len(results) != len(queries):
                raise RuntimeError(f"the retriever answered {len(results)} results to {len(queries)} queries")
            return list(results)
        except Exception as error:
            if len(queries) == 1 or isinstance(error, ServingError):  # a ServingError is the engine's, not the query's
                return [error] * len(queries)
            # only the type is told: an exception's text may hold a passage
            log.warning("a batch of %d queries failed (%s); they are tried one by one", len(queries), type(error).__name__)
            return [self._answer([query], k)[0] for query in queries]

    def _take(self) -> list[Job]:
        """Take up to `max_batch` queries of the k whose turn it is, one of each request in turn."""
        k = next(iter(self._waiting))
        requests = self._waiting.pop(k)
        batch: list[Job] = []
        places = 0
        while requests and places < self._max_batch:
            request = requests.popleft()
            batch.append(request.popleft())
            places += 1 + len(batch[-1].query) // CHARACTERS_PER_PLACE
            if request:
                requests.append(request)
        if requests:
            self._waiting[k] = requests  # behind the others
        self.queued -= len(batch)
        return batch
