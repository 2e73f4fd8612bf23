"""BM25 over a FlashRAG (bm25s) index, with the defects of FlashRAG's own query path mended.

FlashRAG 0.3.0.dev builds a stemmed index and then queries it unstemmed, lets the query vocabulary grow without bound, fails
with SystemError when k exceeds the corpus and with an exception on queries without a known word, fills up with passages that
match nothing (score 0), and returns np.float32. Only its files are kept: they are mapped, and scored by `bm25_kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rag_serving import IndexingError, MissingExtraError
from rag_serving.corpus import Corpus
from rag_serving.reading import mapped
from rag_serving.retrievers.base import ANY_K, Hit, Retriever
from rag_serving.vocabulary import Vocabulary

_POSTINGS_OF_A_PART = 50_000


class BM25(Retriever):
    """A FlashRAG BM25 index (backend bm25s) in `index_dir`, over `corpus`."""

    nested_to = ANY_K  # exact, and ordered by score, then row

    def __init__(self, index_dir: Path, corpus: Corpus, threads: int = 1, language: str = "en") -> None:
        """Map the index; `threads` share the queries of one batch.

        Raises:
            IndexingError: a file is missing, or holds scores that this kernel does not add up (BM25L, BM25+).
            MissingExtraError: bm25s, numba or PyStemmer is not installed.
        """
        try:
            from rag_serving.retrievers.bm25_kernel import best
        except ImportError as error:
            raise MissingExtraError(error.name or "numba") from error
        self._best, self._corpus = best, corpus
        self.vocabulary = Vocabulary(index_dir, language)
        if (index_dir / "nonoccurrence_array.index.npy").exists():
            raise IndexingError(f"{index_dir} was built with BM25L or BM25+; build it with: rag-serving index")
        try:
            self._scores, self._rows, self._starts = (
                np.asarray(mapped(index_dir / f"{name}.csc.index.npy")) for name in ("data", "indices", "indptr")
            )
        except (OSError, ValueError) as error:
            raise IndexingError(f"{index_dir} cannot be read ({error}); build the index again") from None
        self._maxima = np.zeros(len(self._starts) - 1, np.float32)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bm25") if threads > 1 else None

    @property
    def size(self) -> int:
        return len(self._corpus)

    def warm_up(self) -> None:
        """Compile the scoring code, which takes numba seconds. It needs a query with a known word: others never reach it."""
        if len(self._maxima):
            self.retrieve([[0]], 1)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if k < 1:
            return [[] for _ in queries]
        answers = self.retrieve([self.vocabulary.token_ids(query) for query in queries], min(k, self.size))
        return [[Hit.of_line(self._corpus.line(row), score) for row, score in zip(*answer, strict=True)] for answer in answers]

    def retrieve(self, token_ids: list[list[int]], k: int) -> list[tuple[list[int], list[float]]]:
        """Return per query the rows and scores of the best `k`, fewer where fewer passages have one of its words."""
        terms = np.array([token for ids in token_ids for token in ids], np.int64)
        pointers = np.cumsum([0, *map(len, token_ids)])
        starts, ends = self._starts[terms].astype(np.int64), self._starts[terms + 1].astype(np.int64)
        rows, scores = np.empty((len(token_ids), k), np.int64), np.empty((len(token_ids), k), np.float32)
        counts = np.empty(len(token_ids), np.int64)

        def part(first: int) -> None:
            self._best(
                terms,
                pointers,
                starts,
                ends,
                self._rows,
                self._scores,
                self._maxima,
                self.size,
                first,
                parts,
                rows,
                scores,
                counts,
            )

        postings = int((ends - starts).sum())  # handing a part to a thread takes longer than to add up few
        parts = max(1, min(self._threads, len(token_ids), postings // _POSTINGS_OF_A_PART))
        if self._pool is None or parts == 1:
            parts = 1
            part(0)
        else:
            list(self._pool.map(part, range(parts)))
        return [(rows[i, :n].tolist(), scores[i, :n].tolist()) for i, n in enumerate(counts.tolist())]
