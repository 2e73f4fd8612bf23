"""Questions that stand in two sets: the same after normalisation, or nearly the same wording (MinHash, then the exact similarity)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from research_rl.errors import missing_extra
from research_rl.metrics import normalize_answer

PERMUTATIONS = 128


def shingles(question: str) -> frozenset[str]:
    """Return the pairs of neighbouring words of the normalised question, its beginning and end counted as words."""
    words = ["^", *normalize_answer(question).split(), "$"]
    return frozenset(f"{one} {two}" for one, two in itertools.pairwise(words))


def jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    """Return |A ∩ B| / |A ∪ B|."""
    return len(one & two) / len(one | two)


class Overlap:
    """The questions that a training set must not contain."""

    def __init__(self, questions: Iterable[str], threshold: float | None = 0.7) -> None:
        """`threshold`: smallest Jaccard similarity of word pairs that counts as nearly the same; None compares for equality only.

        Raises:
            MissingExtraError: datasketch is not installed, and there is a threshold.
        """
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"the threshold must be above 0 and at most 1, got {threshold}")
        self._exact = {normalize_answer(question): question for question in questions}
        self._threshold, self._questions, self._shingles = threshold, list(self._exact.values()), []
        if threshold is not None and self._exact:
            # asked for a little less than the threshold, so that the estimate misses few; the exact similarity decides
            self._lsh = _datasketch().MinHashLSH(threshold=max(0.05, threshold - 0.1), num_perm=PERMUTATIONS)
            self._shingles = [shingles(question) for question in self._questions]
            for number, sketch in enumerate(_sketches(self._shingles)):
                self._lsh.insert(number, sketch)

    def find(self, questions: Sequence[str]) -> list[tuple[str, str] | None]:
        """Return for each question (reason, the question it repeats), or None; the reason is "same" or "nearly the same"."""
        found: list[tuple[str, str] | None] = []
        near = self._near(questions) if self._shingles else [None] * len(questions)
        for question, other in zip(questions, near, strict=True):
            exact = self._exact.get(normalize_answer(question))
            found.append(("same", exact) if exact is not None else ("nearly the same", other) if other is not None else None)
        return found

    def _near(self, questions: Sequence[str]) -> list[str | None]:
        sets = [shingles(question) for question in questions]
        found = []
        for own, sketch in zip(sets, _sketches(sets), strict=True):
            candidates: list[int] = self._lsh.query(sketch)  # type: ignore[assignment]  # the keys that were inserted
            scored = [(jaccard(own, self._shingles[number]), -number) for number in candidates]
            best, number = max(scored, default=(0.0, 0))
            found.append(self._questions[-number] if scored and best >= (self._threshold or 1) else None)
        return found


def _datasketch():
    try:
        import datasketch
    except ModuleNotFoundError as error:
        raise missing_extra("datasketch", "data") from error
    return datasketch


def _sketches(sets: Iterable[frozenset[str]]) -> Iterable:
    encoded = ([text.encode() for text in own] for own in sets)
    return _datasketch().MinHash.generator(encoded, num_perm=PERMUTATIONS)
