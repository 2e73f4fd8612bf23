"""Term ids of passages → BM25's arrays as bm25s writes them, by counting sort into files, a range of terms at a time.

The arrays equal those of bm25s bit for bit (method `lucene`); what differs is the memory: that of one range, which the caller bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving.reading import mapped
from rag_serving.retrievers.bm25_kernel import compiled

POSTING_BYTES = 8  # a row and a score
LENGTHS = "lengths.npy"  # int32, words of each passage: with them, what was counted can be told from the scores


class Unclear(Exception):
    """How often a word is in a passage cannot be told from its score: several numbers round to the same."""


@dataclass(frozen=True)
class Written:
    """The arrays of an index whose passages are the first of a larger one."""

    starts: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray

    @classmethod
    def read(cls, directory: Path) -> Written | None:
        """Map what `write_postings` wrote; None if it is of a version that did not keep the lengths."""
        if not (directory / LENGTHS).is_file():
            return None
        names = ("indptr.csc.index.npy", "indices.csc.index.npy", "data.csc.index.npy", LENGTHS)
        return cls(*(np.asarray(mapped(directory / name)) for name in names))


@compiled
def sort_and_count(ids, ends, first, last, frequencies):
    """Sort the ids of each passage first … last in place; add to `frequencies` (int64 per term) in how many passages it is."""
    for row in range(first, last):
        start = ends[row - 1] if row else 0
        passage = ids[start : ends[row]]
        passage.sort()
        for i in range(len(passage)):
            if i == 0 or passage[i] != passage[i - 1]:
                frequencies[passage[i]] += 1


@compiled
def _score(idf, frequency, norm):
    return np.float32(np.float64(idf) * (frequency / (norm + frequency)))


@compiled
def _frequency(score, idf, norm):
    """Return how often a word is in a passage, by its score; 0 if that is not clear."""
    if norm == 0:  # k1 is 0: all numbers score the same, in any index of this k1
        return 1
    share = np.float64(score) / np.float64(idf)
    guess = int(np.floor(norm * share / (1 - share) + 0.5)) if share < 1 else 0
    least = max(1, guess - 2)
    found, matches = 0, 0
    for frequency in range(least, guess + 3):
        if _score(idf, frequency, norm) == score:
            found = frequency
            matches += 1
    # numbers of one score are neighbours: one at the edge may have more of them beyond
    clear = matches == 1 and found < guess + 2 and (found > least or least == 1)
    return found if clear else 0


@compiled
def _again(low, high, old_starts, old_rows, old_scores, old_idf, old_norms, starts, offset, idf, norms, rows, scores):
    """Write the postings of terms low … high that were written before, scored anew; return whether all are clear."""
    for term in range(low, high):
        position = starts[term] - offset
        for i in range(old_starts[term], old_starts[term + 1]):
            row = old_rows[i]
            frequency = _frequency(old_scores[i], old_idf[term], old_norms[row])
            if frequency == 0:
                return False
            rows[position] = row
            scores[position] = _score(idf[term], frequency, norms[row])
            position += 1
    return True


@compiled
def _fill(ids, ends, first, low, high, offset, cursors, idf, norms, rows, scores):
    """Write the postings of terms low … high; `first` is the first passage's row; `cursors` (per term, absolute) is advanced, `offset` is
    where `rows` begins.
    """
    start = 0
    for row in range(len(ends)):
        end = ends[row]
        i = start
        while i < end and ids[i] < low:
            i += 1
        while i < end and ids[i] < high:
            term, frequency = ids[i], 0
            while i < end and ids[i] == term:
                frequency += 1
                i += 1
            position = cursors[term] - offset
            rows[position] = first + row
            scores[position] = _score(idf[term], frequency, norms[first + row])
            cursors[term] += 1
        start = end


def inverse_frequencies(frequencies: np.ndarray, passages: int) -> np.ndarray:
    """Return the inverse document frequency of each term, float32, by Lucene's formula."""
    distinct, which = np.unique(frequencies, return_inverse=True)
    values = [math.log(1 + (passages - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, np.float32)[which]


def write_postings(
    ids: np.ndarray,
    ends: np.ndarray,
    terms: int,
    directory: Path,
    k1: float,
    b: float,
    memory: int,
    threads: int,
    report: Callable[[int], Any] = lambda postings: None,
    before: Written | None = None,
) -> int:
    """Write `data`, `indices`, `indptr` and the lengths to `directory`; return the number of postings.

    Args:
        ids: int32, the passages' term ids one after the other; sorted in place within each passage.
        ends: int64, where each passage ends in it.
        terms: the number of terms.
        memory: bytes that the ranges under way may take together.
        report: told the postings of each range that is written.
        before: what was written, with the same `k1` and `b`, of the passages that come before; `ids` are those of the others.

    Raises:
        Unclear: what was counted before cannot be told from its scores.
    """
    lengths = np.diff(ends, prepend=0)
    first = 0 if before is None else len(before.lengths)
    if before is not None:
        lengths = np.concatenate([before.lengths.astype(np.int64), lengths])
    passages = len(lengths)
    np.save(directory / LENGTHS, lengths.astype(np.int32))
    with ThreadPoolExecutor(threads) as pool:
        cuts = np.linspace(0, len(ends), threads + 1).astype(int)
        counted = [np.zeros(terms, np.int64) for _ in range(threads)]
        list(pool.map(lambda i: sort_and_count(ids, ends, cuts[i], cuts[i + 1], counted[i]), range(threads)))
        frequencies = sum(counted[1:], counted[0])
        known = np.zeros(terms, np.int64)  # in how many passages that come before each term is
        old: tuple[np.ndarray, ...] = ()
        if before is not None:
            held = np.diff(before.starts)
            known[: len(held)] = held
            old = (before.starts, before.rows, before.scores, inverse_frequencies(held, first), _norms(before.lengths, k1, b))
        frequencies = frequencies + known
        starts = np.concatenate([[0], np.cumsum(frequencies)])
        postings = int(starts[-1])
        idf = inverse_frequencies(frequencies, passages)
        norms = _norms(lengths, k1, b)
        # bm25s leaves the choice to scipy: 32 bits where they suffice
        pointer = np.int32 if max(postings, passages) <= np.iinfo(np.int32).max else np.int64
        np.save(directory / "indptr.csc.index.npy", starts.astype(pointer))
        files = [
            _created(directory / f"{name}.csc.index.npy", kind, postings)
            for name, kind in (("indices", np.int32), ("data", np.float32))
        ]
        cursors = starts[:-1] + known
        ranges = _ranges(starts, max(1, memory // threads // POSTING_BYTES))

        def one(bounds: tuple[int, int]) -> None:
            low, high = bounds
            begin, end = int(starts[low]), int(starts[high])
            rows, scores = np.empty(end - begin, np.int32), np.empty(end - begin, np.float32)
            if old and not _again(low, min(high, len(old[0]) - 1), *old, starts, begin, idf, norms, rows, scores):
                raise Unclear
            _fill(ids, ends, first, low, high, begin, cursors, idf, norms, rows, scores)
            for (path, offset), values in zip(files, (rows, scores), strict=True):
                with path.open("r+b") as file:
                    file.seek(offset + 4 * begin)
                    values.tofile(file)
            report(end - begin)

        list(pool.map(one, ranges))
    return postings


def _norms(lengths: np.ndarray, k1: float, b: float) -> np.ndarray:
    """Return what a frequency is compared with, per passage."""
    average = lengths.mean() or 1.0  # 0 where no passage has a word
    return k1 * ((1 - b) + b * lengths / average)  # float64, and in this order: bm25s' own


def _ranges(starts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Return ranges of terms that have at most `most` postings each (or are one term)."""
    ranges, low = [], 0
    while low < len(starts) - 1:
        high = max(low + 1, int(np.searchsorted(starts, starts[low] + most, side="right")) - 1)
        ranges.append((low, high))
        low = high
    return ranges


def _created(path: Path, kind: Any, length: int) -> tuple[Path, int]:
    """Make a .npy file of its final length; return it, and the byte at which its values begin."""
    if length == 0:
        np.save(path, np.empty(0, kind))
        return path, 128
    values = np.lib.format.open_memmap(path, "w+", kind, (length,))
    return path, int(values.offset)
