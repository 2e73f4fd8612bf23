"""What a retriever is, and a 20-line one that makes the whole server testable without an index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved passage; `score` is a plain float, larger is better, comparable within one query and one retriever only."""

    id: str
    contents: str
    score: float


class Retriever(ABC):
    """Answers batches of queries. To add one, subclass this and name it in `rag_serving.retrievers.open_retriever`."""

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


class DummyRetriever(Retriever):
    """Returns the first `k` passages whose text contains the query (any case)."""

    def __init__(self, passages: Sequence[tuple[str, str]]) -> None:
        """`passages`: (id, contents) pairs."""
        self._passages = list(passages)

    @property
    def size(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(i, text, 1.0) for i, text in self._passages if query.lower() in text.lower()][:k] for query in queries]
