"""The k best passages of a query by BM25, exactly, over a term's postings sorted by row; compiled by numba.

Rows are taken in blocks whose scores fit a core's cache, instead of one array of scores for all passages. Within a block MaxScore
(Turtle & Flood 1995; by blocks as in Strohman & Croft 2007) leaves out what cannot matter: once the k-th best score is known, terms whose
largest scores together do not reach it only add to passages that another term has found.

Scores are those of bm25s, bit for bit: float32, added in the order of the query's words. Equal scores are ordered by row, so that the
first five of ten are the five. The functions hold no lock of the interpreter: threads may search one index side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BLOCK = 1 << 15  # rows scored together: 128 KB of scores and as much for the list of rows
_FIRST_BLOCK = 1 << 10  # small at first: the sooner k passages are known, the sooner terms drop out
_SLACK = np.float32(1.00001)  # float32 sums differ by their order; bounds must hold for any


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function; later processes reuse the result where numba's cache can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no directory that can be written for numba's cache
        return numba.njit(nogil=True)(function)


@compiled
def _search(indices, low, high, row):
    """Return the first position in low … high whose row is not below `row`; `high` if there is none."""
    while low < high:
        middle = (low + high) >> 1
        if indices[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _gallop(indices, start, end, row):
    """As `_search`, where the position is likely to be near `start`."""
    step = 1
    while start + step < end and indices[start + step] < row:
        start += step
        step *= 2
    return _search(indices, start, min(start + step, end), row)


@compiled
def _pruned(seen, touched, count, rest, floor):
    """Keep the rows that can still reach `floor` if they gain `rest`; forget the others' scores. Return how many are kept."""
    kept = 0
    for j in range(count):
        row = touched[j]
        if (seen[row] + rest) * _SLACK >= floor:
            touched[kept] = row
            kept += 1
        else:
            seen[row] = 0
    return kept


@compiled
def _add(indices, data, begin, end, first, seen, touched, count):
    """Add a term's postings begin … end to the rows that have a score: by walking along them, or by looking the rows up."""
    if end - begin < 8 * count:
        for position in range(begin, end):
            row = indices[position] - first
            if np.uint64(row) < np.uint64(len(seen)) and seen[row] > 0:
                seen[row] += data[position]
    else:
        for j in range(count):
            row = touched[j]
            at = _search(indices, begin, end, first + row)
            if at < end and indices[at] == first + row:
                seen[row] += data[at]


@compiled
def _worse(score, row, other_score, other_row):
    return score < other_score or (score == other_score and row > other_row)


@compiled
def _sift(scores, rows, size):
    """Restore the heap, whose root is the worst, after its root was replaced."""
    here, score, row = 0, scores[0], rows[0]
    while True:
        child = 2 * here + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], rows[child + 1], scores[child], rows[child]):
            child += 1
        if not _worse(scores[child], rows[child], score, row):
            break
        scores[here], rows[here] = scores[child], rows[child]
        here = child
    scores[here], rows[here] = score, row


@compiled
def _push(scores, rows, size, score, row):
    """Add to a heap that is not full."""
    here = size
    while here > 0:
        parent = (here - 1) >> 1
        if not _worse(score, row, scores[parent], rows[parent]):
            break
        scores[here], rows[here] = scores[parent], rows[parent]
        here = parent
    scores[here], rows[here] = score, row


@compiled
def _largest(data, maxima, term, start, end):
    """Return the largest score of a term's postings; found at its first use, then kept in `maxima`."""
    if maxima[term] == 0:
        best = np.float32(0)
        for position in range(start, end):
            best = max(best, data[position])
        maxima[term] = best
    return maxima[term]


@compiled
def _one(terms, starts, ends, indices, data, maxima, size, seen, touched, rows, scores):
    """Fill `rows` and `scores` with the best of one query, best first; return how many. `seen` is all 0, and is left so."""
    count, k = len(terms), len(rows)
    largest = np.empty(count, np.float32)
    for i in range(count):
        largest[i] = _largest(data, maxima, terms[i], starts[i], ends[i])
    order = np.argsort(largest)  # from the term that adds least
    bounds = np.cumsum(largest[order])
    essential = np.ones(count, np.bool_)
    begins, positions = starts.copy(), starts.copy()
    dropped, kept, width, first = 0, 0, _FIRST_BLOCK, 0
    while first < size:
        last = min(size, first + width)
        if kept == k:
            while dropped < count and bounds[dropped] * _SLACK < scores[0]:
                essential[order[dropped]] = False
                dropped += 1
            if dropped == count:
                break
        found, span = 0, np.uint64(last - first)
        for i in range(count):
            if essential[i]:
                begins[i] = position = positions[i]
                end = ends[i]
                while position < end:
                    row = indices[position] - first
                    if np.uint64(row) >= span:  # beyond the block; below it, where the rows of a damaged index do not rise
                        break
                    before = seen[row]
                    touched[found] = row
                    found = min(found + (before == 0), BLOCK)  # a score of 0, of a damaged index too, would count its row again
                    seen[row] = before + data[position]
                    position += 1
                positions[i] = position
        floor = scores[0] if kept == k else np.float32(0)
        left = _pruned(seen, touched, found, bounds[dropped - 1] if dropped else np.float32(0), floor)
        for j in range(dropped - 1, -1, -1):
            if left == 0:
                break
            i = order[j]
            begins[i] = _gallop(indices, positions[i], ends[i], first)
            positions[i] = _gallop(indices, begins[i], ends[i], last)
            _add(indices, data, begins[i], positions[i], first, seen, touched, left)
            left = _pruned(seen, touched, left, bounds[j - 1] if j else np.float32(0), floor)
        for j in range(left):
            score, row = seen[touched[j]], first + touched[j]
            seen[touched[j]] = 0
            if kept == k and score * _SLACK < scores[0]:
                continue
            if dropped:  # added up in the query's order
                score = np.float32(0)
                for i in range(count):
                    at = _search(indices, begins[i], positions[i], row)
                    if at < positions[i] and indices[at] == row:
                        score += data[at]
            if kept < k:
                _push(scores, rows, kept, score, row)
                kept += 1
            elif _worse(scores[0], rows[0], score, row):
                scores[0], rows[0] = score, row
                _sift(scores, rows, k)
        first, width = last, min(2 * width, BLOCK)
    for left in range(kept - 1, 0, -1):  # heap sort: the worst to the end
        scores[0], scores[left] = scores[left], scores[0]
        rows[0], rows[left] = rows[left], rows[0]
        _sift(scores, rows, left)
    return kept


@compiled
def best(terms, pointers, starts, ends, indices, data, maxima, size, first, step, rows, scores, counts):
    """Search queries `first`, `first + step`, …; query i has the terms `pointers[i] … pointers[i + 1]` of `terms`, `starts` and `ends`.

    Args:
        starts, ends: int64, where a term's postings lie in `indices` (their rows, rising) and `data` (their scores, float32).
        maxima: float32 per term of the vocabulary, at first 0.
        size: the number of passages.
        rows, scores, counts: the answers, (queries, k), (queries, k) and (queries,).
    """
    seen = np.zeros(BLOCK, np.float32)
    touched = np.empty(BLOCK + 1, np.int32)
    for query in range(first, len(pointers) - 1, step):
        a, b = pointers[query], pointers[query + 1]
        counts[query] = _one(
            terms[a:b], starts[a:b], ends[a:b], indices, data, maxima, size, seen, touched, rows[query], scores[query]
        )
