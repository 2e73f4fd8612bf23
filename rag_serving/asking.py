"""What `rag-serving search` and `rag-serving bench` do."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_serving import ServingError
from rag_serving.load import Target, drive

if TYPE_CHECKING:
    from rag_serving.retrievers import Hit, Opened


def conditions(text: str) -> dict[str, Any]:
    """Return the conditions of `--where`, which is JSON.

    Raises:
        ServingError: it is none, or they cannot be.
    """
    from rag_serving.where import Where

    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = str(error)
    if not isinstance(found, dict):
        raise ServingError(f'--where is a JSON object, got {text[:80]!r}; give one like \'{{"year": {{"gte": 2018}}}}\'')
    Where(found)
    return found


def hits_of_service(url: str, token: str, query: str, k: int, where: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return what a running service finds: `id`, `contents`, `score`, best first; with `where`, of the passages that match.

    Raises:
        ServingError: it does not answer, or refuses.
    """
    from rag_serving.client import Client

    async def ask() -> list[dict[str, Any]]:
        async with Client(url, token) as service:
            asked = {"queries": [query], "top_k": k} | ({"where": where} if where else {})
            return await service.ask("/v1/search", asked, lambda told: told["results"][0])

    return asyncio.run(ask())


def reachable(url: str, token: str) -> None:
    """Raise ServingError if no service answers at `url`, or it has no index of the name in it; the message names those that it has."""
    from rag_serving.client import Client

    async def ask() -> None:
        async with Client(url, token) as service:
            await service.live()

    asyncio.run(ask())


def hits_of_index(index: Path, query: str, k: int, where: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return what an index finds, searched here; with `where`, of the passages that match.

    Raises:
        ServingError: it is missing or damaged, the query is blank or k not positive, or the passages have no such field.
    """
    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import DEFAULT_INDEX, Settings

    if not query.strip() or k < 1:
        raise ServingError(f"nothing to search for: the query is {query!r} and -k {k}; give words, and 1 or more passages")
    settings = Settings(index={DEFAULT_INDEX: index})
    opened = open_retriever(settings)
    try:
        hits = _found(opened, query, k, where, max(k, settings.max_top_k))
        return [{**hit.passage, "score": hit.score} for hit in hits]
    finally:
        opened.retriever.close()


def _found(opened: Opened, query: str, k: int, where: dict[str, Any] | None, bound: int) -> list[Hit]:
    if not where:
        return opened.retriever.search([query], k)[0]
    from rag_serving.filtering import search_until
    from rag_serving.lookup import Lookup
    from rag_serving.service import Answer
    from rag_serving.where import Where

    corpus, wanted = opened.corpus, Where(where)
    assert corpus is not None
    wanted.check(corpus.fields)
    lookup = Lookup(corpus)

    async def search(depth: int) -> Answer:
        return Answer(opened.index_id, opened.retriever.search([query], depth), [False], 0.0, 0.0)

    def matches(hit: Hit) -> bool:
        row = lookup.row(hit.id)
        return row is not None and wanted.matches(corpus.metadata_of(row))

    async def kept(answer: Answer) -> list[list[Hit]]:
        return [list(filter(matches, hits)) for hits in answer.hits]

    return asyncio.run(search_until(k, bound, search, kept)).answer.hits[0]


def shown(hits: Sequence[dict[str, Any]]) -> str:
    """Return hits to be read in a terminal; what could move its cursor or change its colours is left out."""
    if not hits:
        return "nothing found"
    blocks = []
    for rank, hit in enumerate(hits, 1):
        first, *rest = _printable(hit["contents"]).split("\n")
        head = f"{rank}. {first}   [{_printable(hit['id'])}, {hit['score']:.4g}]"
        blocks.append("\n".join([head, *(f"   {line}" for line in rest)]))
    return "\n\n".join(blocks)


def _printable(text: str) -> str:
    return "".join(character for character in text if character == "\n" or not unicodedata.category(character).startswith("C"))


def distinct(path: Path) -> list[str]:
    """Return the distinct lines of a file that are not blank.

    Raises:
        ServingError: it cannot be read, or has none.
    """
    try:
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        found = list(dict.fromkeys(line for line in lines if line))
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"no queries in {path} ({error}); give a file of one query a line") from None
    if not found:
        raise ServingError(f"{path} has no queries; give a file of one query a line")
    return found


def bench(target: Target, queries: Sequence[str], clients: int, seconds: float, k: int) -> dict[str, Any]:
    """Ask every query once, `clients` at a time, for up to `seconds`; return queries per second, milliseconds, and counts.

    Raises:
        ServingError: nobody listens there.
    """
    left = iter(queries)  # of all clients together, so that no query is asked twice

    def requests(_: int) -> Iterator[bytes]:
        for query in left:
            yield target.request("/v1/search", {"queries": [query], "top_k": k})

    load = asyncio.run(drive(target, clients, seconds, requests))
    refused = {str(status): count for status, count in sorted(load.statuses.items()) if status != 200}
    return {
        "queries_per_second": round(load.per_second, 1),
        # JSON has no number for what nothing was measured of
        **{f"p{share}_ms": round(load.percentile(share / 100), 2) if load.latencies else None for share in (50, 95, 99)},
        "answered": load.statuses.get(200, 0),
        "not_answered": refused,
        "seconds": round(load.seconds, 2),
        "clients": clients,
        "all_asked": next(left, None) is None,
    }
