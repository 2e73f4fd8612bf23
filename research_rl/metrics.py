"""Answer metrics: the only copies in this repository.

Normalisation and F1 follow SQuAD's definitions (Rajpurkar et al., 2016) as FlashRAG and the methods' papers use them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalize_answer(text: str) -> str:
    """Lower the case, delete ASCII punctuation, drop the articles a/an/the, squeeze white space (in this order)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golden_answers: Iterable[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised golden answer, else 0.0."""
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(golden) for golden in golden_answers))


def f1(prediction: str, golden_answers: Iterable[str]) -> float:
    """Return the best token F1 over the golden answers; 2PR/(P+R) over bags of normalised tokens.

    If either side is yes, no or noanswer, only equality counts.
    """
    return max((_f1(normalize_answer(prediction), normalize_answer(golden)) for golden in golden_answers), default=0.0)


def _f1(prediction: str, golden: str) -> float:
    if prediction != golden and (prediction in _CLOSED or golden in _CLOSED):
        return 0.0
    predicted, expected = prediction.split(), golden.split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def cover_em_substring(prediction: str, golden_answers: Iterable[str]) -> float:
    """Return 1.0 if a normalised golden answer is a substring of the normalised prediction (FlashRAG's `acc`)."""
    normalized = normalize_answer(prediction)
    return float(any(normalize_answer(golden) in normalized for golden in golden_answers))
