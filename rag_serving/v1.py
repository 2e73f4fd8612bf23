"""What answers `/v1/…`: search with exclusions and snippets, one passage, a document's passages in order, page by page."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

import orjson

from rag_serving import wire_v1
from rag_serving.building import COPIED_US, DECODED_US, EXCLUDED_US, SNIPPET_US, aside, built
from rag_serving.corpus import Corpus
from rag_serving.lookup import Lookup, title_of
from rag_serving.operations import request_id
from rag_serving.retrievers import Opened
from rag_serving.retrievers.base import Hit
from rag_serving.service import Answer, Refused, Service, searched_index
from rag_serving.snippets import SNIPPET_CHARACTERS, Exclusion, snippet


class V1:
    """Our own API over a service. Passages are read in threads: their pages may have to come from the disk."""

    def __init__(self, service: Service) -> None:
        self._service, self._lock = service, threading.Lock()
        self._lookup: Lookup | None = None

    async def search(self, request: wire_v1.SearchRequest) -> dict[str, Any]:
        """Answer `/v1/search`.

        Raises:
            Refused: as `Service.search`.
        """
        started = time.perf_counter()
        before = self._opened() if request.metadata else None
        excluded = Exclusion(request.exclude_titles, request.exclude_ids)
        answer, left_out = await self._search(request.queries, request.top_k, excluded)
        each_us = SNIPPET_US if request.snippet else COPIED_US if request.max_characters is None else DECODED_US
        said = await self._said(answer, before[0]) if before else [None] * len(answer.hits)
        told: dict[str, Any] = {
            "request_id": request_id.get(), "index_id": answer.index_id,
            "results": await built(partial(_hits, request), each_us, answer.hits, request.queries, said),
            "cached": answer.cached,
        }  # fmt: skip
        if excluded:
            told |= {"excluded": left_out, "missing": [request.top_k - len(hits) for hits in answer.hits]}
        timings = {
            "queue_ms": answer.queue_ms,
            "engine_ms": answer.engine_ms,
            "total_ms": 1000 * (time.perf_counter() - started),
        }
        return told | {"timings": {name: round(value, 3) for name, value in timings.items()}}

    async def _search(self, queries: list[str], k: int, excluded: Exclusion) -> tuple[Answer, list[int]]:
        """Search for more than k, and once more for much more, until k hits are left of every query."""
        if not excluded:
            return await self._service.search(queries, k), []
        self._service.check(queries, k)
        settings = self._service.settings
        limit = min(settings.max_top_k, settings.max_passages // len(queries))
        answer, kept = await self._without(queries, min(limit, k + 10), excluded)
        if any(len(rest) < k and len(hits) == min(limit, k + 10) for rest, hits in zip(kept, answer.hits, strict=True)):
            answer, kept = await self._without(queries, min(limit, 10 * k + 100), excluded)
        left_out = [len(hits) - len(rest) for rest, hits in zip(kept, answer.hits, strict=True)]
        return replace(answer, hits=[rest[:k] for rest in kept]), left_out

    async def _without(self, queries: list[str], k: int, excluded: Exclusion) -> tuple[Answer, list[list[Hit]]]:
        answer = await self._service.search(queries, k)
        passages = sum(map(len, answer.hits))
        return answer, await aside(lambda: [list(filter(excluded.keeps, hits)) for hits in answer.hits], passages, EXCLUDED_US)

    async def _said(self, answer: Answer, before: Opened) -> list[list[bytes]]:
        """Return the metadata of each hit, from the index that answered; `before` was served when the search began."""
        for opened in (before, self._service.opened):
            if opened is not None and opened.corpus is not None and opened.index_id == answer.index_id:
                return await asyncio.to_thread(self._said_of, opened, opened.corpus, answer.hits)
        raise Refused(503, "not_ready", "the index was replaced while this was answered; ask again", retry_after_s=1)

    def _said_of(self, opened: Opened, corpus: Corpus, results: list[list[Hit]]) -> list[list[bytes]]:
        lookup = self._looked_up(corpus)
        said = iter(self._metadata(corpus, [_row(lookup, hit.id, opened) for hits in results for hit in hits]))
        return [list(islice(said, len(hits))) for hits in results]

    def _metadata(self, corpus: Corpus, rows: Sequence[int]) -> list[bytes]:
        size, limit = corpus.metadata.size(rows) if corpus.metadata else 0, self._service.settings.max_metadata_bytes
        if size > limit:
            raise Refused(
                413, "max_metadata_bytes",
                f"{size} bytes of metadata in one answer; the limit max_metadata_bytes is {limit}: ask for fewer passages",
            )  # fmt: skip
        return list(map(corpus.metadata_of, rows))

    async def passage(self, name: str, metadata: bool = False) -> dict[str, Any]:
        """Answer `/v1/passages/{id}`.

        Raises:
            Refused: 404 for an unknown id, 501 where the passages are elsewhere, 503 while there is no index.
        """
        return await asyncio.to_thread(self._passage, *self._opened(), name, metadata)

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
        return await asyncio.to_thread(self._documents, *self._opened(), request, stop)

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
        return await asyncio.to_thread(self._open, *self._opened(), request, size)

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
                400, "page",
                f"there is no page {page}: with {size} passages a page, the document of {request.id[:100]!r} has pages 1 to {pages}",
            )  # fmt: skip
        return {
            "index_id": opened.index_id, "id": request.id, "title": title_of(corpus[row]["contents"]), "page": page, "pages": pages,
            "passages": self._passages(corpus, document[(page - 1) * size : page * size], request.metadata),
        }  # fmt: skip

    def _passage(self, opened: Opened, corpus: Corpus, name: str, metadata: bool) -> dict[str, Any]:
        lookup = self._looked_up(corpus)
        row = _row(lookup, name, opened)
        (passage,) = self._passages(corpus, [row], metadata)
        title = title_of(passage["contents"])
        rows = lookup.titled(title) if title else [range(row, row + 1)]
        return {
            **passage, "title": title,
            "position": sum(len(range(run.start, min(run.stop, row))) for run in rows), "total": sum(map(len, rows)),
        }  # fmt: skip

    def _documents(self, opened: Opened, corpus: Corpus, request: wire_v1.DocumentsRequest, stop: int) -> dict[str, Any]:
        lookup = self._looked_up(corpus)
        if request.title is not None:
            runs = lookup.titled(request.title)
            if not runs:
                raise Refused(
                    404, "title", f"the index {opened.index_id} has no passage with the title {request.title[:100]!r}"
                )
        else:
            runs = _merged([run for name in request.ids or () for run in self._named(lookup, name, opened)])
        rows = islice(chain.from_iterable(runs), request.start, max(request.start, stop))
        return {
            "index_id": opened.index_id, "total": sum(map(len, runs)),
            "passages": self._passages(corpus, list(rows), request.metadata),
        }  # fmt: skip

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

    def _opened(self) -> tuple[Opened, Corpus]:
        opened = self._service.opened
        if opened is None:
            raise Refused(503, "not_ready", f"there is no index yet ({self._service.stage})")
        if opened.corpus is None:
            raise Refused(
                501,
                "no_corpus",
                f"the retriever {opened.engine or opened.index_id} holds no passages of its own; only searches",
            )
        searched_index.set(opened.index_id)
        return opened, opened.corpus

    def _looked_up(self, corpus: Corpus) -> Lookup:
        with self._lock:  # an index without tables is read through once
            if self._lookup is None or self._lookup.corpus is not corpus:
                self._lookup = Lookup(corpus)
            return self._lookup


def _hits(request: wire_v1.SearchRequest, hits: list[Hit], query: str, said: list[bytes] | None) -> list[Any]:
    return [_hit(query, hit, request, metadata) for hit, metadata in zip(hits, said or [None] * len(hits), strict=True)]


def _hit(query: str, hit: Hit, request: wire_v1.SearchRequest, metadata: bytes | None) -> Any:
    if hit.line is not None and request.max_characters is None and not request.snippet:
        more = b"" if metadata is None else b', "metadata": ' + metadata
        return orjson.Fragment(hit.line[:-1] + b', "score": ' + orjson.dumps(hit.score) + more + b"}")
    told: dict[str, Any] = {"id": hit.id, "contents": hit.contents[: request.max_characters], "score": hit.score}
    if request.snippet:
        told["snippet"] = snippet(query, hit.contents, SNIPPET_CHARACTERS if request.snippet is True else request.snippet)
    if metadata is not None:
        told["metadata"] = orjson.Fragment(metadata)
    return told


def _row(lookup: Lookup, name: str, opened: Opened) -> int:
    row = lookup.row(name)
    if row is None:
        raise Refused(404, "passage", f"the index {opened.index_id} has no passage with the id {name[:100]!r}")
    return row


def _merged(runs: list[range]) -> list[range]:
    """Return the same rows in order, each once."""
    merged: list[range] = []
    for run in sorted(runs, key=lambda run: run.start):
        if merged and run.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
        else:
            merged.append(run)
    return merged
