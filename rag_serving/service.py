"""Between the application and the retriever: loading, limits, cache, batches, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rag_serving import ServingError, metrics
from rag_serving.batching import Batcher, EngineHangs, Job, Overloaded, Search
from rag_serving.cache import AnswerCache, DiskCached
from rag_serving.cut_off import ChangedError
from rag_serving.faults import EXPECTED, told
from rag_serving.retrievers import Opened
from rag_serving.retrievers.base import Hit
from rag_serving.settings import DEFAULT_INDEX, Settings

if TYPE_CHECKING:
    from rag_serving.lookup import Lookup

log = logging.getLogger("rag_serving")
Load = Callable[[Settings, Callable[[str], None]], Opened]
LOOK_S = 0.5  # a file system that takes longer to say how large a file is does not hold up who asks whether a service is ready
LOOKED_S = 0.005  # seconds for which the retriever's thread relies on its last look
_WORD = re.compile(r"\w+")
searched_index: ContextVar[str] = ContextVar("searched_index", default="")  # the id of the index that answers this request


class Refused(Exception):
    """A request that is not served: HTTP `status`, and why."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits per query, all from the index named; whether each came from the cache; milliseconds in the queue and in the engine, each of the
    request's slowest query.
    """

    index_id: str
    hits: list[list[Hit]]
    cached: list[bool]
    queue_ms: float
    engine_ms: float


class _Named(logging.LoggerAdapter):
    """Lines that begin with the name of an index."""

    def process(self, msg: Any, kwargs: Any) -> tuple[str, Any]:
        return f"index {self.extra['index'] if self.extra else ''}: {msg}", kwargs


class Service:
    """One index, which one thread warms up, searches and closes."""

    def __init__(self, settings: Settings, load: Load, name: str, thread: ThreadPoolExecutor) -> None:
        """`settings` are this index's, `name` is its name in metrics; `thread` has one worker: that alone makes any retriever safe."""
        self.settings, self._load, self.name, self._thread = settings, load, name, thread
        # the unnamed index needs no name: it is the only one
        self._log = log if name == DEFAULT_INDEX else _Named(log, {"index": name})
        self._cache = self._new_cache()
        self._reloading = asyncio.Lock()
        self._batcher: Batcher | None = None
        self._opened: Opened | None = None
        self._first: Opened | None = None  # what the queue made at the start asks, also while a reload drains it
        self.failure: BaseException | None = None
        self._damage: tuple[Opened, ServingError] | None = None
        self._looker = self._new_looker()
        self._looking: tuple[Opened, asyncio.Future[Any]] | None = None
        self._looked = 0.0  # when the retriever's thread last found the files to be what they were
        self.lookup: Lookup | None = None  # of the index that is served
        self.stage, self.started = "starting", time.monotonic()
        self.settled = threading.Event()  # ready, or failed for good
        self._stopped = False
        self._loading: ThreadPoolExecutor | None = None
        self._under_way: dict[Future[Any], str] = {}  # what the threads do or will do beside searching, the earliest first

    @property
    def ready(self) -> bool:
        """Whether the retriever is loaded, has answered its first query, and does not hang."""
        return self._opened is not None and not self.hangs

    @property
    def hangs(self) -> bool:
        """Whether the engine has not answered a batch for longer than `engine_timeout_s`."""
        return self._batcher is not None and self._batcher.hangs

    @property
    def damage(self) -> ServingError | None:
        """What is known to be wrong with a file of the index that is served: its hash, or that it has another size now (`look`)."""
        return self._damage[1] if self._damage is not None and self._damage[0] is self._opened else None

    async def look(self) -> bool:
        """Look whether the files of the index that is served are what they were; at most `LOOK_S`, for their mount may be dead. Return
        whether that is known now.
        """
        opened = self._opened
        if opened is None or opened.files is None or self._stopped:
            return True
        # one look at a time: who asks leaves nothing behind while the mount is dead
        if self._looking is None or self._looking[0] is not opened or self._looking[1].done():
            self._looking = opened, asyncio.wrap_future(self._looker.submit(self._changed, opened))
        done, _ = await asyncio.wait([self._looking[1]], timeout=LOOK_S)
        return bool(done)

    async def refuse_changed(self, opened: Opened) -> None:
        """Refuse to read an index whose files were changed in place: the next page that is read might end the process.

        Raises:
            Refused: 503.
        """
        if not await self.look():
            raise Refused(503, "damaged", "the index's files do not answer: the file system that they lie on may be gone", 5)
        if opened is self._opened:
            self._refuse_known_change()

    def _refuse_known_change(self) -> None:
        if isinstance(self.damage, ChangedError):
            raise Refused(503, "damaged", str(self.damage))

    def _changed(self, opened: Opened) -> ChangedError | None:
        """Return what is wrong with the files' sizes now. Called in a thread: the files may lie on a mount that is dead."""
        if changed := opened.files.changed() if opened.files is not None else None:
            self._damaged(opened, changed)
        return changed

    def _whole(self, opened: Opened, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search in the retriever's thread, if the files are what they were: the next page that is read might end the process.

        One look holds for the batches of `LOOKED_S`: it takes as long as a search of a small index.
        """
        if time.monotonic() > self._looked + LOOKED_S:
            if changed := self._changed(opened):
                raise changed
            self._looked = time.monotonic()
        return opened.retriever.search(queries, k)

    def _damaged(self, opened: Opened, error: ServingError) -> None:
        if self._opened is opened and self.damage is None:
            self._damage = opened, error
            metrics.DAMAGED.labels(self.name).set(1)
            self._log.error("the index that is served is damaged (%s): %s", self.settings.directory, error)

    @property
    def status(self) -> str:
        """`ready`, `hangs`, `failed` (not loaded, or damaged) or `loading`."""
        if self.failure or self.damage:
            return "failed"
        return "hangs" if self.hangs else "ready" if self.ready else "loading"

    @property
    def healthy(self) -> bool:
        """Whether it is ready and no file of the index was found to be another one. If only a hash differs, it goes on answering; if a size
        differs, it does not (`_whole`).
        """
        return self.ready and self.damage is None

    @property
    def opened(self) -> Opened | None:
        """What is served."""
        return self._opened

    def start(self, loading: ThreadPoolExecutor) -> None:
        """Load in a thread of `loading`, warm up in the retriever's; returns at once."""
        for gauge in (metrics.READY, metrics.DAMAGED, metrics.QUEUED):  # one with labels is not told before it has a value
            gauge.labels(self.name).set(0)
        self._batcher, self._loading = self._new_batcher(self._search), loading
        self._submit(loading, "loading", self._prepare)

    def _submit(self, pool: ThreadPoolExecutor, what: str, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = pool.submit(work, *arguments)
        self._under_way[future] = what
        future.add_done_callback(self._under_way.pop)
        return future

    @property
    def under_way(self) -> str:
        """What its threads are doing beside searching, in words; nothing where they do nothing."""
        what = next(iter(list(self._under_way.values())), "")
        return f"{what} ({self.stage})" if what == "loading" else what

    def _new_batcher(self, search: Search) -> Batcher:
        return Batcher(
            search,
            self._thread,
            max_batch=self.settings.max_batch,
            max_wait_s=self.settings.max_wait_ms / 1000,
            max_queue=self.settings.max_queue,
            deduplicate=self.settings.deduplicate,
            timeout_s=self.settings.engine_timeout_s,
            on_batch=self._record,
            on_hang=self._hang,
        )

    def _new_looker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"looking-{self.name}")

    def _new_cache(self) -> AnswerCache:
        # the web keeps its own answers, and knows how long each is good for
        return AnswerCache(0 if self.settings.retriever == "web" else self.settings.cache_mb)

    async def reload(self) -> None:
        """Load anew what the settings name, beside what is served; switch once it is warm. If that fails, what is served stays.

        A request is answered by the index, the queue and the cache that it was admitted to; the old index is closed after the last.
        """
        if self._reloading.locked():
            self._log.warning(
                "the index is being loaded again already (%s); this is done after it", self.under_way or "old searches end"
            )
        async with self._reloading:
            while not self.settled.is_set():
                await asyncio.sleep(0.05)
            old, queries = self._opened, self._batcher
            if old is None or queries is None or self._loading is None or self._stopped:
                return
            try:
                new = await asyncio.wrap_future(self._submit(self._loading, "being loaded again", self._open))
                await asyncio.wrap_future(self._submit(self._thread, "warming up what was loaded again", new.retriever.warm_up))
            except Exception as error:
                if self._stopped:
                    return
                metrics.RELOADS.labels(self.name, "failed").inc()
                self._log.error(
                    "the index could not be loaded again, index %s is still served: %s",
                    old.index_id,
                    told(error),
                    exc_info=not isinstance(error, EXPECTED),
                )
                return
            _settle()
            self._opened, self._batcher, self._cache = new, self._new_batcher(partial(self._whole, new)), self._new_cache()
            self.lookup = None  # it maps the files of the old one
            self._looker.shutdown(wait=False)  # its thread may hang in the file system of the old one
            self._looker, self._looking, self._looked = self._new_looker(), None, 0.0
            self._served(new, old)
            metrics.RELOADS.labels(self.name, "done").inc()
            self._log.info(
                "index %s is served now, in the place of %s: %s passages", new.index_id, old.index_id, new.retriever.size
            )
            await queries.drain()
            self._first = None
            self._submit(self._thread, "closing what was replaced", old.retriever.close)

    async def stop(self) -> None:
        """Answer what was admitted, then close the retriever."""
        self._stopped = True
        if self._batcher is not None and self.ready:
            try:
                await asyncio.wait_for(self._batcher.drain(), self.settings.drain_s)
            except TimeoutError:
                self._log.error("queries were still unanswered after drain_s, %g s", self.settings.drain_s)
        if self._opened is not None:
            self._submit(self._thread, "answering its last queries or closing", self._opened.retriever.close)
            metrics.SERVED.labels(self.name, self._opened.index_id).set(0)
        metrics.READY.labels(self.name).set(0)
        self._thread.shutdown(wait=False, cancel_futures=self._opened is None)
        self._looker.shutdown(wait=False, cancel_futures=True)
        self.settled.set()

    def _prepare(self) -> None:
        try:
            opened = self._open(self._report)
            self._report("warming up")
            self._submit(self._thread, "warming up", self._warm, opened)  # meanwhile the next index is loaded
        except BaseException as error:
            self._failed(error)

    def _warm(self, opened: Opened) -> None:
        try:
            opened.retriever.warm_up()
            _settle()
            self._log.info(
                "ready: %s passages, index %s, after %.1f s",
                opened.retriever.size,
                opened.index_id,
                time.monotonic() - self.started,
            )
            self._opened, self._first, self.stage = opened, opened, "ready"
            self._served(opened)
            self.settled.set()
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not self._stopped:  # meanwhile: there is no thread to warm it up in
            self.failure, self.stage = error, "failed"
            self._log.error("the index could not be loaded: %s", told(error), exc_info=not isinstance(error, EXPECTED))
        self.settled.set()

    def _open(self, report: Callable[[str], None] = lambda stage: None) -> Opened:
        opened = self._load(self.settings, report)
        if self.settings.cache_dir is None or self.settings.retriever == "web":
            return opened
        return replace(opened, retriever=DiskCached(opened.retriever, self.settings.cache_dir, opened.fingerprint))

    def _served(self, new: Opened, old: Opened | None = None) -> None:
        metrics.READY.labels(self.name).set(1)
        if old is not None:
            metrics.SERVED.labels(self.name, old.index_id).set(0)
        metrics.SERVED.labels(self.name, new.index_id).set(1)
        self._damage = None
        metrics.DAMAGED.labels(self.name).set(0)
        if new.hashing is not None:
            new.hashing.start(partial(self._damaged, new))

    def _report(self, stage: str) -> None:
        self.stage = stage
        self._log.info("%s …", stage)

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        assert self._first is not None
        return self._whole(self._first, queries, k)

    def _record(self, size: int, seconds: float) -> None:
        metrics.BATCH_SIZE.labels(self.name).observe(size)
        metrics.STAGE_SECONDS.labels(self.name, "engine").observe(seconds)
        metrics.QUEUED.labels(self.name).set(self._batcher.queued if self._batcher else 0)

    def _hang(self, hangs: bool) -> None:
        metrics.READY.labels(self.name).set(int(not hangs))
        if hangs:
            metrics.QUEUED.labels(self.name).set(0)
            self._log.error(
                "the engine hangs: no answer to a batch within engine_timeout_s, %g s", self.settings.engine_timeout_s
            )
        else:
            self._log.warning("the engine answers again")

    def check(self, queries: Sequence[str], k: int) -> None:
        """Refuse what is beyond the limits.

        Raises:
            Refused: 400 or 413, naming the limit.
        """
        limits = self.settings
        if not queries:
            raise Refused(400, "blank", "the list of queries is empty")
        if len(queries) > limits.max_queries:
            raise Refused(
                413, "max_queries", f"{len(queries)} queries in one request; the limit max_queries is {limits.max_queries}"
            )
        if not 1 <= k <= limits.max_top_k:
            raise Refused(
                400, "max_top_k", f"{k} passages per query asked for; the limits are 1 and max_top_k, {limits.max_top_k}"
            )
        if len(queries) * k > limits.max_passages:
            raise Refused(
                413,
                "max_passages",
                f"{len(queries)} queries with {k} passages each; the limit max_passages is {limits.max_passages} in all",
            )
        for position, query in enumerate(queries):
            if len(query) > limits.max_query_characters:
                raise Refused(
                    413,
                    "max_query_characters",
                    f"query {position} has {len(query)} characters; the limit max_query_characters is {limits.max_query_characters}",
                )
            # n characters are at most (n + 1) / 2 words
            if len(query) >= 2 * limits.max_query_words and len(_WORD.findall(query)) > limits.max_query_words:
                raise Refused(
                    413,
                    "max_query_words",
                    f"query {position} has more words than the limit max_query_words, {limits.max_query_words}",
                )
            if not query.strip():
                raise Refused(400, "blank", f"query {position} is blank")
            try:
                query.encode()
            except UnicodeEncodeError:
                raise Refused(400, "unicode", f"query {position} holds a lone surrogate, which is no Unicode text") from None

    async def search(self, queries: Sequence[str], k: int) -> Answer:
        """Answer one request.

        Raises:
            Refused: 400 or 413 beyond a limit, 429 when the queue is full, 502 when the engine fails, 503 while there is none, it hangs or
                its files are not whole, 504 if it began to hang while the request waited.
        """
        self.check(queries, k)
        # taken together: a reload changes all three between two requests
        opened, batcher, cache = self._opened, self._batcher, self._cache
        if opened is None or batcher is None:
            reason = (
                f"the index could not be loaded: {told(self.failure)}"
                if self.failure
                else f"the index is loading ({self.stage})"
            )
            raise Refused(503, "not_ready", reason, retry_after_s=None if self.failure else 1)
        self._refuse_known_change()
        searched_index.set(opened.index_id)
        nested_to = opened.retriever.nested_to
        found: list[list[Hit] | None] = [cache.find(query, k, nested_to) for query in queries]
        cached = [hits is not None for hits in found]
        missing = [i for i, hits in enumerate(found) if hits is None]
        metrics.QUERIES.labels(self.name, "cache").inc(len(queries) - len(missing))
        if not missing:
            return Answer(opened.index_id, [hits or [] for hits in found], cached, 0.0, 0.0)
        try:
            jobs = batcher.submit([queries[i] for i in missing], k, nested_to)
        except Overloaded as full:
            raise Refused(429, "queue_full", f"the queue is full: {full}", full.retry_after_s) from None
        except EngineHangs as hangs:
            raise Refused(503, "engine_timeout_s", str(hangs), retry_after_s=5) from None
        metrics.QUEUED.labels(self.name).set(batcher.queued)
        joined = sum(known for _, known in jobs)
        metrics.QUERIES.labels(self.name, "in_flight").inc(joined)
        metrics.QUERIES.labels(self.name, "engine").inc(len(jobs) - joined)
        try:
            for i, (job, known) in zip(missing, jobs, strict=True):
                hits = await self._result(batcher, job)
                found[i] = hits[:k]
                if not known:
                    cache.put(queries[i], k, hits, nested_to)
        except BaseException:  # the client left, or another query of the request failed
            metrics.ABANDONED.labels(self.name).inc(batcher.leave([job for job, _ in jobs]))
            metrics.QUEUED.labels(self.name).set(batcher.queued)
            for job, known in jobs:
                if not known:  # what is searched all the same is kept: the client may ask again
                    job.done.add_done_callback(partial(_keep, cache, job, nested_to))
            raise
        return self._answer(opened.index_id, [hits or [] for hits in found], cached, [job for job, _ in jobs])

    async def _result(self, batcher: Batcher, job: Job) -> list[Hit]:
        try:
            return await batcher.result(job)
        except EngineHangs as hangs:
            raise Refused(504, "engine_timeout_s", str(hangs)) from None
        except Overloaded as full:  # it made way for a smaller request
            raise Refused(429, "queue_full", f"the queue is full: {full}", full.retry_after_s) from None
        except ChangedError as changed:
            raise Refused(503, "damaged", str(changed)) from None
        except ServingError as error:
            metrics.ENGINE_FAILURES.labels(self.name).inc()
            raise Refused(502, "engine", str(error)) from error
        except Exception as error:
            metrics.ENGINE_FAILURES.labels(self.name).inc()
            self._log.exception("a search failed")
            raise Refused(502, "engine", f"the search failed: {type(error).__name__}") from error

    def _answer(self, index_id: str, hits: list[list[Hit]], cached: list[bool], jobs: list[Job]) -> Answer:
        waited, queue = [job.started - job.entered for job in jobs], metrics.STAGE_SECONDS.labels(self.name, "queue")
        for seconds in waited:
            queue.observe(max(seconds, 0.0))
        return Answer(index_id, hits, cached, 1000 * max(0.0, *waited), 1000 * max(job.finished - job.started for job in jobs))


def _settle() -> None:
    """Take what is loaded out of the collector's sight: each of its full passes over it would be a pause of 100 ms for every client."""
    gc.collect()
    gc.freeze()


def _keep(cache: AnswerCache, job: Job, nested_to: int, done: asyncio.Future[list[Hit]]) -> None:
    if not done.cancelled() and done.exception() is None:
        cache.put(job.query, job.k, done.result(), nested_to)
