"""How long a query takes over an index that is not there yet: the BM25 kernel searches postings that are made up.

Queries are words of passages of a small index. The share of passages that hold a word stays as a corpus grows, and so do the word's scores:
for each word as many rows as the large index would have are drawn, with scores drawn from those of the small one. One row has all
words of a query, as the passage that they are from. Otherwise words are independent; those of real text stand together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import cpu_count

from rag_serving.indexing.postings import Written
from rag_serving.load import queries
from rag_serving.retrievers.bm25_kernel import best
from rag_serving.vocabulary import Vocabulary

QUERIES, WORDS, K = 64, 9, 5
MOST_PASSAGES = 50_000_000  # beyond, the postings of a few words take gigabytes
_ROUNDS, _SECONDS = 3, 0.1  # a measurement's, both at the least
_AT_ONCE, _IN_ALL = 24_000_000, 120_000_000  # postings that are made up: of 8 bytes, in some 20 ns each


@dataclass(frozen=True)
class Speed:
    """Of the engine alone, with its pages in memory: a query's mean milliseconds on one thread, and queries a second on all threads."""

    milliseconds: float
    per_second: float


def measure(index: Path, passages: int, threads: int = 0) -> Speed | None:
    """Return what searching `passages` takes on this machine, by the words of `index`; `threads`: 0 for one per core.

    None for more than `MOST_PASSAGES`, and where no query has a word that the index knows.
    """
    written, threads = Written.read(index / "bm25"), threads or cpu_count()
    if written is None or passages > MOST_PASSAGES:
        return None
    vocabulary, generator = Vocabulary(index / "bm25"), np.random.default_rng(0)
    texts = queries(index, QUERIES, WORDS)
    asked = [ids for text in texts if (ids := vocabulary.token_ids(text))]
    started = time.thread_time()
    for text in texts:
        vocabulary.token_ids(text)
    splitting = (time.thread_time() - started) / len(texts)
    count, alone, together = 0, 0.0, 0.0
    for batch in _batches(asked, np.diff(written.starts) * (passages / len(written.lengths))):
        search = _Search(batch, written, passages, generator)
        search.seconds(1)  # compiles, and finds each word's largest score, which a service keeps
        alone += search.seconds(1)
        together += search.seconds(threads) / threads
        count += len(batch)
    if not count:
        return None
    return Speed(1000 * (splitting + alone / count), 1 / (splitting + together / count))


def _batches(asked: list[list[int]], held: np.ndarray) -> Iterator[list[list[int]]]:
    """Yield queries, as many at a time as memory and in all as time allow; `held`: by term, in how many passages it is."""
    batch: list[list[int]] = []
    made = 0.0
    for terms in asked:
        batch.append(terms)
        size = held[np.unique(np.concatenate(batch))].sum()
        if size > _AT_ONCE:
            yield batch
            batch, made = [], made + size
            if made > _IN_ALL:
                return
    if batch:
        yield batch


class _Search:
    """Queries, and the postings of their terms in an index of `passages`."""

    def __init__(self, batch: list[list[int]], written: Written, passages: int, generator: np.random.Generator) -> None:
        distinct = np.unique(np.concatenate(batch))
        growth = passages / len(written.lengths)
        held = np.clip(np.round(np.diff(written.starts)[distinct] * growth), 1, passages).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(held)])
        self._rows, self._scores = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        sources = generator.integers(0, passages, len(batch))
        for number, term in enumerate(distinct.tolist()):
            rows = self._rows[starts[number] : starts[number + 1]]
            rows[:] = _drawn(passages, len(rows), generator)
            for source in sources[[term in terms for terms in batch]].tolist():
                rows[min(np.searchsorted(rows, source), len(rows) - 1)] = source
            known = written.scores[written.starts[term] : written.starts[term + 1]]
            self._scores[starts[number] : starts[number + 1]] = known[generator.integers(0, len(known), len(rows))]
        self._passages, self._maxima = passages, np.zeros(len(distinct), np.float32)
        self._terms = np.searchsorted(distinct, np.concatenate(batch))
        self._starts, self._ends = starts[self._terms], starts[self._terms + 1]
        self._pointers = np.cumsum([0, *map(len, batch)])

    def seconds(self, threads: int) -> float:
        """Return what all queries take a thread when so many threads ask all of them side by side, each starting with a different one.

        It is the threads' own time: what else the machine does is not counted, what they take of each other's memory bandwidth is.
        """
        asked = len(self._pointers) - 1

        def part(first: int) -> float:
            started = time.thread_time()
            answers = np.empty((asked, K), np.int64), np.empty((asked, K), np.float32), np.empty(asked, np.int64)
            for pointers, begin in ((self._pointers, first), (self._pointers[: first + 1], 0)):
                best(
                    self._terms,
                    pointers,
                    self._starts,
                    self._ends,
                    self._rows,
                    self._scores,
                    self._maxima,
                    self._passages,
                    begin,
                    1,
                    *answers,
                )
            return time.thread_time() - started

        taken, begun = [], time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            while len(taken) < _ROUNDS or time.perf_counter() < begun + _SECONDS:
                taken.append(sum(pool.map(part, [number * asked // threads for number in range(threads)])) / threads)
        return min(taken)


def _drawn(passages: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` different rows of `passages`, rising: sums of exponential gaps are uniform, in order (Devroye 1986, V.3)."""
    gaps = generator.standard_exponential(count + 1)
    np.cumsum(gaps, out=gaps)
    return (gaps[:-1] * ((passages - count) / gaps[-1])).astype(np.int64) + np.arange(count)
