"""BM25 over a FlashRAG (bm25s) index, with the defects of FlashRAG's own query path mended.

FlashRAG 0.3.0.dev builds a stemmed index and then queries it unstemmed, lets the query vocabulary grow without bound, fails
with SystemError when k exceeds the corpus and with an exception on queries without a known word, fills up with passages that
match nothing (score 0), and returns np.float32. Only its format is kept: bm25s loads the index, and queries are turned into ids here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import MissingExtraError
from rag_serving.corpus import Corpus
from rag_serving.retrievers.base import Hit, Retriever


def tokenizer() -> Any:
    """Return FlashRAG's tokenizer of English text: lower case, words of two letters or more, stop words, Snowball stems.

    Raises:
        MissingExtraError: bm25s or PyStemmer is not installed.
    """
    try:
        import Stemmer
        from bm25s.tokenization import Tokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "bm25s") from error
    return Tokenizer(stopwords="en", stemmer=Stemmer.Stemmer("english"))


class BM25(Retriever):
    """A FlashRAG BM25 index (backend bm25s) in `index_dir`, over `corpus`."""

    def __init__(self, index_dir: Path, corpus: Corpus, threads: int = 1) -> None:
        """Load the index by memory map; `threads`, or as many as numba has, score the queries of one batch.

        Raises:
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        words = tokenizer()
        import numba

        # numba refuses more threads than it has: fewer than cores under NUMBA_NUM_THREADS or in a container of few
        self._corpus, self._threads = corpus, min(threads, numba.get_num_threads())
        words.load_stopwords(str(index_dir))
        words.load_vocab(str(index_dir))
        from bm25s import BM25 as Engine

        self._engine: Any = Engine.load(
            str(index_dir), mmap=True, load_corpus=False
        )  # annotations leave out ids, which it accepts
        self._engine.backend = "numba"
        self._splitter, self._stemmer = words.splitter, words.stemmer
        self._stopwords = frozenset(words.stopwords or ())
        self._stem_ids: dict[str, int] = words.stem_to_sid
        self._rows = np.arange(len(corpus), dtype=np.int32)

    @property
    def size(self) -> int:
        return len(self._rows)

    def token_ids(self, query: str) -> list[int]:
        """Return the ids of the query's stems that the index knows, in order; empty if it knows none."""
        words = (word for word in self._splitter(query.lower()) if word not in self._stopwords)
        stems = (self._stemmer(word) for word in words)
        return [self._stem_ids[stem] for stem in stems if stem in self._stem_ids]

    def warm_up(self) -> None:
        """Compile the scoring code, which takes numba seconds. It needs a query with a known word: others never reach the engine."""
        if self._stem_ids:
            self._retrieve([[0]], 1)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        encoded = [self.token_ids(query) for query in queries]
        known = [ids for ids in encoded if ids]
        if not known or k < 1:
            return [[] for _ in queries]
        answers = iter(self._retrieve(known, min(k, self.size)))
        return [self._hits(*next(answers)) if ids else [] for ids in encoded]

    def _retrieve(self, token_ids: list[list[int]], k: int) -> list[tuple[list[int], list[float]]]:
        # bm25s returns corpus[i]; given the row numbers as corpus it returns those, and no text passes through numpy object arrays
        rows, scores = self._engine.retrieve(
            token_ids, corpus=self._rows, k=k, show_progress=False, n_threads=min(self._threads, len(token_ids))
        )
        return list(zip(rows.tolist(), scores.tolist(), strict=True))

    def _hits(self, rows: list[int], scores: list[float]) -> list[Hit]:
        hits = []
        for row, score in zip(rows, scores, strict=True):
            if score > 0:  # score 0: no word in common
                passage = self._corpus[row]
                hits.append(Hit(passage["id"], passage["contents"], score))
        return hits
