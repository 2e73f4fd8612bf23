"""Passages of made-up words whose frequencies, and whose number of distinct words, go as in real text.

The probability of the word of rank r is proportional to 1/r up to `HEAD`, and falls as r^-1.79 beyond (Ferrer i Cancho & Solé 2001), so
that n words hold about n^0.56 distinct ones (Heaps' law), without end. The first ranks are English stop words, which an index leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from rag_serving.indexing.formats import Passage

HEAD, HEAPS = 20_000, 0.56
_STOP = (
    "the of and in to a is was for as with by on that at be are it an this not or their but they into no if such there then will these"
).split()
_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]


@lru_cache(1 << 20)
def word(rank: int) -> str:
    """Return the word of a rank (from 1): a stop word, or syllables that no other rank has."""
    if rank <= len(_STOP):
        return _STOP[rank - 1]
    syllables, left = [], rank
    while left:
        left, one = divmod(left, len(_SYLLABLES))
        syllables.append(_SYLLABLES[one])
    return "".join(syllables) + "x"  # no ending that a stemmer takes off


def synthetic(words: int, seed: int = 0, start: int = 0) -> Iterator[Passage]:
    """Yield passages of `words` words, endless, with the ids `start`, `start + 1`, …; a title of two of them goes before."""
    import numpy as np

    generator = np.random.default_rng(seed)
    head = np.array([word(rank) for rank in range(1, HEAD + 1)], object)
    weights = 1.0 / np.arange(1, HEAD + 1)
    tail = 1 / (1 / HEAPS - 1)  # the sum of (r / HEAD)^(-1 / HEAPS) beyond HEAD, over HEAD
    cumulative = np.cumsum(weights) / (weights.sum() + tail)
    number = start
    while True:
        drawn = generator.random((1000, words))
        ranks = np.searchsorted(cumulative, drawn)
        chosen = head[np.minimum(ranks, HEAD - 1)]
        beyond = ranks >= HEAD
        # the tail is Pareto's distribution: drawn uniformly above the head's sum, inverted
        share = (1 - drawn[beyond]) / (1 - cumulative[-1])
        far = HEAD * np.maximum(share, 1e-12) ** (-tail) + 1
        chosen[beyond] = [word(int(rank)) for rank in far]
        for row in chosen:
            yield {"id": str(number), "contents": f"{row[0]} {row[1]}\n{' '.join(row)}"}
            number += 1
