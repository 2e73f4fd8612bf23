"""Retrievers that a result is compared with: what does a model gain from passages that were not looked for, or from none?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from rag_serving.corpus import Corpus
from rag_serving.retrievers.base import ANY_K, Hit, Retriever


class RandomPassages(Retriever):
    """Returns passages of the corpus drawn by the query's hash: the same for the same query, whatever it asks."""

    nested_to = 0  # random.sample draws five of a corpus otherwise than ten

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    @property
    def size(self) -> int:
        return len(self._corpus)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._draw(query, min(k, self.size)) for query in queries]

    def _draw(self, query: str, k: int) -> list[Hit]:
        # not hash(): it differs from process to process
        rng = random.Random(hashlib.sha256(query.encode()).digest())
        return [Hit.of_line(self._corpus.line(row), 0.0) for row in rng.sample(range(self.size), k)]


class Nothing(Retriever):
    """Finds nothing."""

    nested_to = ANY_K

    @property
    def size(self) -> int:
        return 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[] for _ in queries]
