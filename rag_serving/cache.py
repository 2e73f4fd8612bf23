"""Answers already given: in memory, bounded by bytes; and, if wanted, on disk in front of the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from cachetools import LRUCache

from rag_serving import MissingExtraError
from rag_serving.retrievers.base import Hit, Retriever

_ENTRY, _HIT = 500, 250  # bytes of an entry's and of a Hit's objects besides their strings, measured on CPython 3.11


def _bytes(query: str, hits: list[Hit]) -> int:
    return _ENTRY + sys.getsizeof(query) + sum(_HIT + hit.bytes for hit in hits)


class AnswerCache(LRUCache):
    """Least recently used answers by (query, k), up to `megabytes`. One server serves one index with one set of settings.

    The query counts with its answer: long queries that find nothing would otherwise be kept for nothing.
    """

    def __init__(self, megabytes: float) -> None:
        super().__init__(maxsize=megabytes * 1e6, getsizeof=itemgetter(0))

    def find(self, query: str, k: int) -> list[Hit] | None:
        """Return the answer, or None if it is not kept."""
        kept = self.get((query, k))
        return None if kept is None else kept[1]

    def put(self, query: str, k: int, hits: list[Hit]) -> None:
        """Keep an answer, unless it alone is larger than the cache."""
        size = _bytes(query, hits)
        if size <= self.maxsize:
            self[query, k] = (size, hits)


class DiskCached(Retriever):
    """Keeps a retriever's answers in `directory`, by (fingerprint of index and settings, query, k). Runs in the engine's thread."""

    def __init__(self, retriever: Retriever, directory: Path, fingerprint: str) -> None:
        """Open or make the cache.

        Raises:
            MissingExtraError: diskcache is not installed.
        """
        try:
            import diskcache
        except ImportError as error:
            raise MissingExtraError(error.name or "diskcache") from error
        self._retriever, self._fingerprint = retriever, fingerprint
        self._kept = diskcache.Cache(str(directory))

    @property
    def size(self) -> int | None:
        return self._retriever.size

    def warm_up(self) -> None:
        self._retriever.warm_up()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        keys = [json.dumps([self._fingerprint, query, k]) for query in queries]
        kept = [self._kept.get(key) for key in keys]
        answers = [[Hit(*row) for row in json.loads(value)] if isinstance(value, str) else None for value in kept]
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if missing:
            for i, hits in zip(missing, self._retriever.search([queries[i] for i in missing], k), strict=True):
                answers[i] = hits
                self._kept.set(keys[i], json.dumps([(hit.id, hit.contents, hit.score) for hit in hits]))
        return [answer or [] for answer in answers]

    def close(self) -> None:
        self._retriever.close()
        self._kept.close()
