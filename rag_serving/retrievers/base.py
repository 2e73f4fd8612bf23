"""What a retriever is, and a 20-line one that makes the whole server testable without an index."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from urllib.parse import urlsplit

ANY_K = sys.maxsize  # for `Retriever.nested_to`


class Hit:
    """One retrieved passage; `score` is a plain float, larger is better, comparable within one query and one retriever only.

    A passage of a corpus is held as its line there, which goes into the answer as it is: to decode and encode it again takes as long as
    finding it.
    """

    __slots__ = ("_passage", "line", "score")

    def __init__(self, id: str, contents: str, score: float) -> None:
        self._passage: dict[str, str] | None = {"id": id, "contents": contents}
        self.line: bytes | None = None
        self.score = score

    @classmethod
    def of_line(cls, line: bytes, score: float) -> Hit:
        """Return the hit of a line of a corpus, ``{"id", "contents"}``."""
        hit = cls.__new__(cls)
        hit._passage, hit.line, hit.score = None, line, score
        return hit

    @property
    def passage(self) -> dict[str, str]:
        """``{"id", "contents"}``; decoded anew each time, so that a hit in the cache keeps its size."""
        return json.loads(self.line) if self.line is not None else self._passage or {}

    @property
    def id(self) -> str:
        """The passage's id."""
        return self.passage["id"]

    @property
    def contents(self) -> str:
        """Title, newline, text."""
        return self.passage["contents"]

    @property
    def bytes(self) -> int:
        """What its text takes in memory."""
        return sys.getsizeof(self.line) if self.line is not None else sys.getsizeof(self.id) + sys.getsizeof(self.contents)

    def scored(self, score: float) -> Hit:
        """Return the same passage with another score."""
        return self.of_line(self.line, score) if self.line is not None else Hit(self.id, self.contents, score)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hit) and (self.passage, self.score) == (other.passage, other.score)

    def __hash__(self) -> int:
        return hash((self.id, self.score))

    def __repr__(self) -> str:
        return f"Hit({self.id!r}, {self.contents[:60]!r}, {self.score!r})"


class Retriever(ABC):
    """Answers batches of queries. To add one, subclass this and name it in `rag_serving.retrievers.open_retriever`.

    `nested_to` is the largest k up to which answers are nested: the first j of k hits are the j hits of the same query, so that one answer
    serves them all. 0, a promise of nothing, is right wherever k changes what is looked at.
    """

    nested_to: int = 0

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The number of passages in the index; None where nobody can know (the web)."""

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return, per query, at most `k` hits, best first, all distinct. Fewer when fewer match. Called by one thread at a time."""

    def warm_up(self) -> None:
        """Do once whatever makes the first search slow (compiling, paging in). Called before the service says it is ready."""
        self.search(["warm up"], 1)

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Give back what is held. Called once, by the thread that searched."""


def shown(address: str) -> str:
    """Return a URL's scheme, host and port, for messages: user, path and query may hold a key. A file's path stays."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else address


class DummyRetriever(Retriever):
    """Returns the first `k` passages whose text contains the query (any case)."""

    nested_to = ANY_K  # the order is the list's

    def __init__(self, passages: Sequence[tuple[str, str]]) -> None:
        """`passages`: (id, contents) pairs."""
        self._passages = list(passages)

    @property
    def size(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(i, text, 1.0) for i, text in self._passages if query.lower() in text.lower()][:k] for query in queries]
