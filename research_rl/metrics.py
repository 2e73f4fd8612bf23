"""Answer metrics: the only copies in this repository.

There are two normalisations, and every metric takes either: `normalize_answer` is SQuAD's (Rajpurkar et al., 2016), as FlashRAG and most
papers use it; `normalize_answer_spaced` is R1-Searcher's, which turns punctuation into spaces ("U.S." is "u s" there, "us" in SQuAD's).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " "))
_BOOLEANS = {"True": "yes", "False": "no"}
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalize_answer(text: str) -> str:
    """Lower the case, delete ASCII punctuation, drop the articles a/an/the, squeeze white space (in this order)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalize_answer_spaced(text: str) -> str:
    """R1-Searcher's: True/False become yes/no, lower the case, punctuation (‘ ’ ´ too) becomes a space, drop articles, squeeze spaces."""
    return " ".join(_ARTICLES.sub(" ", _BOOLEANS.get(text, text).lower().translate(_SPACED)).split())


Normalize = Callable[[str], str]


def exact_match(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return 1.0 if the normalised prediction equals a normalised golden answer, else 0.0."""
    normalized = normalize(prediction)
    return float(any(normalized == normalize(golden) for golden in golden_answers))


def f1(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return the best token F1 over the golden answers; 2PR/(P+R) over bags of normalised tokens.

    If either side is yes, no or noanswer, only equality counts.
    """
    return _best(prediction, golden_answers, normalize)[0]


def precision(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return the token precision against the golden answer with the best F1, the share of predicted tokens that are golden.

    FlashRAG takes the highest precision and the highest recall over the golden answers, perhaps of different ones. Here
    precision and recall belong to the same golden answer, and f1 is their harmonic mean.
    """
    return _best(prediction, golden_answers, normalize)[1]


def recall(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return the token recall against the golden answer with the best F1, the share of its tokens that are predicted."""
    return _best(prediction, golden_answers, normalize)[2]


def _best(prediction: str, golden_answers: Iterable[str], normalize: Normalize) -> tuple[float, float, float]:
    """Return (F1, precision, recall) of the golden answer with the best F1."""
    normalized = normalize(prediction)
    return max((_overlap(normalized, normalize(golden)) for golden in golden_answers), default=(0.0, 0.0, 0.0))


def _overlap(prediction: str, golden: str) -> tuple[float, float, float]:
    if prediction != golden and (prediction in _CLOSED or golden in _CLOSED):
        return 0.0, 0.0, 0.0
    predicted, expected = prediction.split(), golden.split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return 0.0, 0.0, 0.0
    precise, complete = common / len(predicted), common / len(expected)
    return 2 * precise * complete / (precise + complete), precise, complete


def cover_em_substring(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return 1.0 if a normalised golden answer is a substring of the normalised prediction (FlashRAG's `acc`)."""
    normalized = normalize(prediction)
    return float(any(normalize(golden) in normalized for golden in golden_answers))


def cover_em_tokens(prediction: str, golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> float:
    """Return 1.0 if every token of a normalised golden answer occurs in the normalised prediction, in any order (R1-Searcher's CEM).

    A golden answer that is normalised to nothing is covered only by a prediction that is, too.
    """
    tokens = normalize(prediction).split(" ")
    return float(any(all(token in tokens for token in normalize(golden).split(" ")) for golden in golden_answers))


def holds_phrase(normalized: str, phrases: Iterable[str]) -> bool:
    """Return whether a normalised text holds one of the normalised phrases as whole words. A phrase without a word is in no text."""
    padded = f" {normalized} "
    return any(f" {phrase} " in padded for phrase in phrases if phrase)


def answer_rank(texts: Iterable[str], golden_answers: Iterable[str], normalize: Normalize = normalize_answer) -> int:
    """Return the rank (from 1) of the first text that holds a golden answer, both normalised, as whole words; 0 if none does."""
    phrases = [normalize(golden) for golden in golden_answers]
    return next((rank for rank, text in enumerate(texts, 1) if holds_phrase(normalize(text), phrases)), 0)


def is_yes_no(golden_answers: Iterable[str]) -> bool:
    """Return whether every golden answer is yes or no, so that it makes no sense to look for it in a passage."""
    return all(normalize_answer(golden) in ("yes", "no") for golden in golden_answers)


NORMALIZERS: dict[str, Normalize] = {"squad": normalize_answer, "r1_searcher": normalize_answer_spaced}
METRICS: dict[str, Callable[[str, Iterable[str], Normalize], float]] = {
    "em": exact_match,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "cover_em_tokens": cover_em_tokens,
    "cover_em_substring": cover_em_substring,
}
