"""Answers already given: in memory, bounded by bytes; and, if wanted, on disk in front of the engine."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from cachetools import LRUCache

from rag_serving import MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever

log = logging.getLogger("rag_serving")

_ENTRY, _HIT = 500, 250  # bytes of an entry's and of a Hit's objects besides their strings, measured on CPython 3.11
_FORM = 2  # version of the form on disk, [k, hits]; entries of another version are not found


def _bytes(query: str, hits: list[Hit]) -> int:
    return _ENTRY + sys.getsizeof(query) + sum(_HIT + hit.bytes for hit in hits)


Key = tuple[str, int | None]


def answer_key(query: str, k: int, nested_to: int) -> Key:
    """Return what an answer is kept by. Where answers are nested (`Retriever.nested_to`), one for the largest k serves all of them."""
    return (query, None if k <= nested_to else k)


class AnswerCache(LRUCache):
    """Answers by `answer_key`, up to `megabytes`; the least recently used go first. Each index has a cache of its own, and a reload begins
    a new one, so that a key names neither index nor settings.

    The query counts with its answer: long queries that find nothing would otherwise be kept for nothing.
    """

    def __init__(self, megabytes: float) -> None:
        super().__init__(maxsize=megabytes * 1e6, getsizeof=itemgetter(0))

    def find(self, query: str, k: int, nested_to: int = 0) -> list[Hit] | None:
        """Return the answer, or None if none for k or more is kept."""
        kept = self.get(answer_key(query, k, nested_to))
        return None if kept is None or kept[1] < k else kept[2][:k]

    def put(self, query: str, k: int, hits: list[Hit], nested_to: int = 0) -> None:
        """Keep an answer, unless it alone is larger than the cache, or one for more is kept."""
        if not self.maxsize:
            return
        key, size = answer_key(query, k, nested_to), _bytes(query, hits)
        if size <= self.maxsize and self.find(query, k, nested_to) is None:
            self[key] = (size, k, hits)


class DiskCached(Retriever):
    """Keeps a retriever's answers in `directory`, by fingerprint of index and settings, and `answer_key`. Runs in the engine's thread."""

    def __init__(self, retriever: Retriever, directory: Path, fingerprint: str) -> None:
        """Open or make the cache.

        Raises:
            MissingExtraError: diskcache is not installed.
            ServingError: the directory cannot be used.
        """
        try:
            import diskcache
        except ImportError as error:
            raise MissingExtraError(error.name or "diskcache") from error
        self._retriever, self._fingerprint, self.nested_to = retriever, fingerprint, retriever.nested_to
        self._told = False  # that the directory cannot be used meanwhile
        try:
            self._kept = diskcache.Cache(str(directory))
        except (OSError, sqlite3.Error) as error:
            raise ServingError(f"no answers can be kept in {directory} ({error}); give another --cache-dir, or none") from None

    @property
    def size(self) -> int | None:
        return self._retriever.size

    def warm_up(self) -> None:
        self._retriever.warm_up()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        keys = [json.dumps([self._fingerprint, *answer_key(query, k, self.nested_to), _FORM]) for query in queries]
        answers = [self._find(key, k) for key in keys]
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if missing:
            for i, hits in zip(missing, self._retriever.search([queries[i] for i in missing], k), strict=True):
                answers[i] = hits
                self._keep(keys[i], json.dumps([k, [(hit.id, hit.contents, hit.score) for hit in hits]]))
        return [answer or [] for answer in answers]

    def _keep(self, key: str, value: str) -> None:
        try:
            self._kept.set(key, value)
        except (OSError, sqlite3.Error) as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        """A disk that is full stops no search; it is told once."""
        if not self._told:
            self._told = True
            log.error("answers are not kept on disk: %s", error)

    def _find(self, key: str, k: int) -> list[Hit] | None:
        try:
            kept = self._kept.get(key)
        except (OSError, sqlite3.Error) as error:
            return self._tell(error)
        if not isinstance(kept, str):
            return None
        kept_k, rows = json.loads(kept)
        return None if kept_k < k else [Hit(*row) for row in rows[:k]]

    def close(self) -> None:
        self._retriever.close()
        self._kept.close()
