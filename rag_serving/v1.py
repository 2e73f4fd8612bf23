"""What answers `/v1/…`: search with exclusions, conditions and snippets, one passage, a document's passages in order, page by page."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import orjson

from rag_serving import ServingError, wire_v1
from rag_serving.building import COPIED_US, DECODED_US, EXCLUDED_US, MATCHED_US, SNIPPET_US, aside, built
from rag_serving.corpus import Corpus
from rag_serving.filtering import Filtered, search_until
from rag_serving.logs import request_id
from rag_serving.lookup import Lookup, merged, title_of
from rag_serving.retrievers import Opened
from rag_serving.retrievers.base import Hit
from rag_serving.service import Answer, Refused, Service, searched_index
from rag_serving.snippets import Exclusion, hits_told
from rag_serving.where import Where


class V1:
    """Our own API over a service. Passages are read in threads: their pages may have to come from the disk."""

    def __init__(self, service: Service) -> None:
        self._service, self._lock = service, threading.Lock()

    async def search(self, request: wire_v1.SearchRequest) -> dict[str, Any]:
        """Answer `/v1/search`.

        Raises:
            Refused: as `Service.search`, and 400 for a `where` that cannot be.
        """
        started = time.perf_counter()
        before = await self._opened() if request.metadata or request.where else None
        found = await self._search(request, before)
        answer = found.answer if isinstance(found, Filtered) else found
        each_us = SNIPPET_US if request.snippet else COPIED_US if request.max_characters is None else DECODED_US
        said = await self._said(answer, before[0]) if before and request.metadata else [None] * len(answer.hits)
        told: dict[str, Any] = {
            "request_id": request_id.get(),
            "index_id": answer.index_id,
            "results": await built(partial(hits_told, request), each_us, answer.hits, request.queries, said),
            "cached": answer.cached,
        }
        if isinstance(found, Filtered):
            missing = [request.top_k - len(hits) for hits in answer.hits]
            told |= {"excluded": found.left_out, "missing": missing, "bound_met": found.bound_met}
        timings = {
            "queue_ms": answer.queue_ms,
            "engine_ms": answer.engine_ms,
            "total_ms": 1000 * (time.perf_counter() - started),
        }
        return told | {"timings": {name: round(value, 3) for name, value in timings.items()}}

    async def _search(self, request: wire_v1.SearchRequest, before: tuple[Opened, Corpus] | None) -> Answer | Filtered:
        excluded, where = Exclusion(request.exclude_titles, request.exclude_ids), await self._where(request.where, before)
        if not excluded and not where:
            return await self._service.search(request.queries, request.top_k)
        self._service.check(request.queries, request.top_k)
        settings = self._service.settings

        async def kept(answer: Answer) -> list[list[Hit]]:
            keeps = [excluded.keeps] if excluded else []
            if where and before:
                keeps.append(partial(self._matches, where, *self._answering(answer, before[0])))
            each_us = EXCLUDED_US * bool(excluded) + MATCHED_US * bool(where)
            return await aside(
                lambda: [[hit for hit in hits if all(keep(hit) for keep in keeps)] for hits in answer.hits],
                sum(map(len, answer.hits)),
                each_us,
            )

        bound = min(settings.max_top_k, settings.max_passages // len(request.queries))
        return await search_until(request.top_k, bound, partial(self._service.search, request.queries), kept)

    async def _where(self, conditions: dict[str, Any] | None, before: tuple[Opened, Corpus] | None) -> Where:
        try:
            where = Where(conditions or {})
            if where and before:
                where.check(await asyncio.to_thread(lambda: before[1].fields))
        except ServingError as error:
            raise Refused(400, "where", str(error)) from None
        return where

    def _matches(self, where: Where, opened: Opened, corpus: Corpus, hit: Hit) -> bool:
        return where.matches(corpus.metadata_of(_row(self._looked_up(corpus), hit.id, opened)))

    def _answering(self, answer: Answer, before: Opened) -> tuple[Opened, Corpus]:
        """Return the index that answered; `before` was served when the search began."""
        for opened in (before, self._service.opened):
            if opened is not None and opened.corpus is not None and opened.index_id == answer.index_id:
                return opened, opened.corpus
        raise Refused(503, "not_ready", "the index was replaced while this was answered; ask again", retry_after_s=1)

    async def _said(self, answer: Answer, before: Opened) -> list[list[bytes]]:
        """Return the metadata of each hit, from the index that answered."""
        return await asyncio.to_thread(self._said_of, *self._answering(answer, before), answer.hits)

    def _said_of(self, opened: Opened, corpus: Corpus, results: list[list[Hit]]) -> list[list[bytes]]:
        lookup = self._looked_up(corpus)
        said = iter(self._metadata(corpus, [_row(lookup, hit.id, opened) for hits in results for hit in hits]))
        return [list(islice(said, len(hits))) for hits in results]

    def _metadata(self, corpus: Corpus, rows: Sequence[int]) -> list[bytes]:
        size, limit = corpus.metadata.size(rows) if corpus.metadata else 0, self._service.settings.max_metadata_bytes
        if size > limit:
            raise Refused(
                413,
                "max_metadata_bytes",
                f"{size} bytes of metadata in one answer; the limit max_metadata_bytes is {limit}: ask for fewer passages",
            )
        return list(map(corpus.metadata_of, rows))

    async def passage(self, name: str, metadata: bool = False) -> dict[str, Any]:
        """Answer `/v1/passages/{id}`.

        Raises:
            Refused: 404 for an unknown id, 501 where the passages are elsewhere, 503 while there is no index.
        """
        return await asyncio.to_thread(self._passage, *await self._read_from(), name, metadata)

    async def documents(self, request: wire_v1.DocumentsRequest) -> dict[str, Any]:
        """Answer `/v1/documents`.

        Raises:
            Refused: as `passage`, and 400 or 413 for more than max_top_k passages or max_queries ids.
        """
        settings = self._service.settings
        stop = request.start + settings.max_top_k if request.stop is None else request.stop
        self._check_size(stop - request.start)
        if len(request.ids or ()) > settings.max_queries:
            raise Refused(413, "max_queries", f"{len(request.ids or ())} ids; the limit max_queries is {settings.max_queries}")
        return await asyncio.to_thread(self._documents, *await self._read_from(), request, stop)

    async def open(self, request: wire_v1.OpenRequest) -> dict[str, Any]:
        """Answer `/v1/open`.

        Raises:
            Refused: as `passage`, and 400 for a size or a page that cannot be.
        """
        settings = self._service.settings
        size = min(settings.open_passages, settings.max_top_k) if request.size is None else request.size
        if size < 1:
            raise Refused(400, "size", f"a page of {size} passages asked for; give 1 to {settings.max_top_k}")
        self._check_size(size)
        return await asyncio.to_thread(self._open, *await self._read_from(), request, size)

    def _check_size(self, passages: int) -> None:
        limit = self._service.settings.max_top_k
        if passages > limit:
            raise Refused(400, "max_top_k", f"{passages} passages asked for; the limit max_top_k is {limit}")

    def _open(self, opened: Opened, corpus: Corpus, request: wire_v1.OpenRequest, size: int) -> dict[str, Any]:
        lookup = self._looked_up(corpus)
        row = _row(lookup, request.id, opened)
        document = lookup.around(row)
        page = (row - document.start) // size + 1 if request.page is None else request.page
        pages = -(-len(document) // size)
        if not 1 <= page <= pages:
            raise Refused(
                400,
                "page",
                f"there is no page {page}: with {size} passages a page, the document of {request.id[:100]!r} has pages 1 to {pages}",
            )
        return {
            "index_id": opened.index_id,
            "id": request.id,
            "title": title_of(corpus[row]["contents"]),
            "page": page,
            "pages": pages,
            "passages": self._passages(corpus, document[(page - 1) * size : page * size], request.metadata),
        }

    def _passage(self, opened: Opened, corpus: Corpus, name: str, metadata: bool) -> dict[str, Any]:
        lookup = self._looked_up(corpus)
        row = _row(lookup, name, opened)
        (passage,) = self._passages(corpus, [row], metadata)
        title = title_of(passage["contents"])
        rows = lookup.titled(title) if title else [range(row, row + 1)]
        return {
            **passage,
            "title": title,
            "position": sum(len(range(run.start, min(run.stop, row))) for run in rows),
            "total": sum(map(len, rows)),
        }

    def _documents(self, opened: Opened, corpus: Corpus, request: wire_v1.DocumentsRequest, stop: int) -> dict[str, Any]:
        lookup = self._looked_up(corpus)
        if request.title is not None:
            runs = lookup.titled(request.title)
            if not runs:
                raise Refused(
                    404, "title", f"the index {opened.index_id} has no passage with the title {request.title[:100]!r}"
                )
        else:
            runs = merged([run for name in request.ids or () for run in self._named(lookup, name, opened)])
        total = sum(map(len, runs))
        rows = islice(chain.from_iterable(runs), min(request.start, total), min(max(request.start, stop), total))
        return {
            "index_id": opened.index_id,
            "total": total,
            "passages": self._passages(corpus, list(rows), request.metadata),
        }

    def _passages(self, corpus: Corpus, rows: Sequence[int], metadata: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"id": passage["id"], "contents": passage["contents"]} for passage in map(corpus.__getitem__, rows)
        ]
        for passage, said in zip(found, self._metadata(corpus, rows), strict=True) if metadata else ():
            passage["metadata"] = orjson.Fragment(said)
        return found

    @staticmethod
    def _named(lookup: Lookup, name: str, opened: Opened) -> list[range]:
        row = lookup.row(name)
        runs = lookup.document(name) if row is None else [range(row, row + 1)]
        if not runs:
            raise Refused(
                404, "passage", f"the index {opened.index_id} has no passage and no document with the id {name[:100]!r}"
            )
        return runs

    async def _opened(self) -> tuple[Opened, Corpus]:
        opened = self._service.opened
        if opened is None:
            raise Refused(503, "not_ready", f"there is no index yet ({self._service.stage})")
        if opened.corpus is None:
            raise Refused(
                501,
                "no_corpus",
                f"the retriever {opened.engine or opened.index_id} holds no passages of its own; only searches",
            )
        await self._service.refuse_changed(opened)
        searched_index.set(opened.index_id)
        return opened, opened.corpus

    async def _read_from(self) -> tuple[Opened, Corpus]:
        opened = self._service.opened
        if (
            opened is not None and opened.engine == "nothing"
        ):  # a control: its agents should meet an unknown id, not a service that lacks a function
            raise Refused(404, "passage", "the retriever nothing has no passage of any id")
        return await self._opened()

    def _looked_up(self, corpus: Corpus) -> Lookup:
        with self._lock:  # an index without tables is read through once
            lookup = self._service.lookup
            if lookup is None or lookup.corpus is not corpus:
                self._service.lookup = lookup = Lookup(corpus)
                opened = self._service.opened
                if (
                    opened is None or opened.corpus is not corpus
                ):  # it was replaced meanwhile: what is kept would keep its files
                    self._service.lookup = None
            return lookup


def _row(lookup: Lookup, name: str, opened: Opened) -> int:
    row = lookup.row(name)
    if row is None:
        raise Refused(404, "passage", f"the index {opened.index_id} has no passage with the id {name[:100]!r}")
    return row
