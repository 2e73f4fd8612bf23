"""Term ids of passages → BM25's arrays as bm25s writes them, by counting sort into files, a range of terms at a time.

The arrays equal those of bm25s bit for bit (method `lucene`); what differs is the memory: that of one range, which the caller bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving.retrievers.bm25_kernel import compiled

POSTING_BYTES = 8  # a row and a score


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
def _fill(ids, ends, low, high, offset, cursors, idf, norms, rows, scores):
    """Write the postings of terms low … high; `cursors` (per term, absolute) is advanced, `offset` is where `rows` begins."""
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
            rows[position] = row
            scores[position] = np.float32(np.float64(idf[term]) * (frequency / (norms[row] + frequency)))
            cursors[term] += 1
        start = end


def inverse_frequencies(frequencies: np.ndarray, passages: int) -> np.ndarray:
    """Return the inverse document frequency of each term, float32, by Lucene's formula."""
    distinct, which = np.unique(frequencies, return_inverse=True)
    values = [math.log(1 + (passages - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, np.float32)[which]


def write_postings(
    ids: np.ndarray, ends: np.ndarray, terms: int, directory: Path, k1: float, b: float, memory: int, threads: int,
    report: Callable[[int], Any] = lambda postings: None,
) -> int:  # fmt: skip
    """Write `data`, `indices` and `indptr` to `directory`; return the number of postings.

    Args:
        ids: int32, the passages' term ids one after the other; sorted in place within each passage.
        ends: int64, where each passage ends in it.
        terms: the number of terms.
        memory: bytes that the ranges under way may take together.
        report: told the postings of each range that is written.
    """
    passages = len(ends)
    lengths = np.diff(ends, prepend=0)
    with ThreadPoolExecutor(threads) as pool:
        cuts = np.linspace(0, passages, threads + 1).astype(int)
        counted = [np.zeros(terms, np.int64) for _ in range(threads)]
        list(pool.map(lambda i: sort_and_count(ids, ends, cuts[i], cuts[i + 1], counted[i]), range(threads)))
        frequencies = sum(counted[1:], counted[0])
        starts = np.concatenate([[0], np.cumsum(frequencies)])
        postings = int(starts[-1])
        idf = inverse_frequencies(frequencies, passages)
        average = lengths.mean() or 1.0  # 0 where no passage has a word
        norms = k1 * ((1 - b) + b * lengths / average)  # float64, and in this order: bm25s' own
        # bm25s leaves the choice to scipy: 32 bits where they suffice
        pointer = np.int32 if max(postings, passages) <= np.iinfo(np.int32).max else np.int64
        np.save(directory / "indptr.csc.index.npy", starts.astype(pointer))
        files = [
            _created(directory / f"{name}.csc.index.npy", kind, postings)
            for name, kind in (("indices", np.int32), ("data", np.float32))
        ]
        cursors = starts[:-1].copy()
        ranges = _ranges(starts, max(1, memory // threads // POSTING_BYTES))

        def one(bounds: tuple[int, int]) -> None:
            low, high = bounds
            begin, end = int(starts[low]), int(starts[high])
            rows, scores = np.empty(end - begin, np.int32), np.empty(end - begin, np.float32)
            _fill(ids, ends, low, high, begin, cursors, idf, norms, rows, scores)
            for (path, offset), values in zip(files, (rows, scores), strict=True):
                with path.open("r+b") as file:
                    file.seek(offset + 4 * begin)
                    values.tofile(file)
            report(end - begin)

        list(pool.map(one, ranges))
    return postings


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
