"""Words to term ids: how a text is split, and a BM25 index's vocabulary as a file that is mapped, not parsed.

bm25s keeps the vocabulary as JSON; 10 million stems take half a minute to parse and a gigabyte in every process. Beside it stands
`vocab.hashes.npy` (uint64, (2, stems)): the stems' 64-bit hashes, rising, and their ids. Two of ten million stems share a hash with
a probability of 3e-6, and a query's unknown word meets one of theirs with 5e-13.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError, MissingExtraError
from rag_serving.reading import mapped, small_json

HASHES, STEMS, STOPWORDS = "vocab.hashes.npy", "vocab.index.json", "stopwords.tokenizer.json"
_KEPT_CHARACTERS = 64  # of a word whose id is remembered
LANGUAGES = {
    "en": "english",
    "de": "german",
    "nl": "dutch",
    "fr": "french",
    "es": "spanish",
    "pt": "portuguese",
    "it": "italian",
    "ru": "russian",
    "sv": "swedish",
    "no": "norwegian",
}


def tokenizer(language: str = "en") -> Any:
    """Return bm25s' tokenizer, as FlashRAG uses it: lower case, words of two letters or more, no stop words, Snowball stems.

    Raises:
        IndexingError: an unknown language.
        MissingExtraError: bm25s or PyStemmer is not installed.
    """
    try:
        import Stemmer
        from bm25s.tokenization import Tokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "bm25s") from error
    if language not in LANGUAGES:
        raise IndexingError(
            f"there are no stop words and stems for the language {language!r}; choose of: {', '.join(LANGUAGES)}"
        )
    return Tokenizer(stopwords=language, stemmer=Stemmer.Stemmer(LANGUAGES[language]))


def _hash(stem: str) -> int:
    return int.from_bytes(hashlib.blake2b(stem.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hashed(stems: Iterable[str]) -> np.ndarray:
    """Return the table of stems whose ids are 0, 1, 2, …: (2, stems) uint64, hashes and ids by rising hash."""
    hashes = np.fromiter((_hash(stem) for stem in stems), np.uint64)
    order = np.argsort(hashes, kind="stable")
    return np.stack([hashes[order], order.astype(np.uint64)])


class Vocabulary:
    """The ids of the words of one index."""

    def __init__(self, directory: Path, language: str = "en") -> None:
        """Map the table in `directory`; an index made without one has it made here, in memory.

        Raises:
            IndexingError: the files are missing or damaged.
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        words = tokenizer(language)
        try:
            stopwords = frozenset(small_json(directory / STOPWORDS) or ())
            if (directory / HASHES).is_file():
                table = mapped(directory / HASHES)
            else:
                stems = json.loads((directory / STEMS).read_text(encoding="utf-8"))
                table = hashed(sorted(stems, key=stems.__getitem__))
        except (OSError, ValueError, TypeError) as error:
            raise IndexingError(f"{directory}: the vocabulary cannot be read ({error}); build the index again") from None
        hashes, ids = table
        self._size = len(ids)
        split, stem = words.splitter, words.stemmer
        stem.__self__.maxCacheSize = 0  # what is asked again is known below

        # not a method: one that is cached would keep its own vocabulary, and the files of an index that has been replaced
        def looked_up(word: str) -> int:
            if word in stopwords:
                return -1
            wanted = np.uint64(_hash(stem(word)))
            position = int(np.searchsorted(hashes, wanted))
            return int(ids[position]) if position < len(ids) and hashes[position] == wanted else -1

        known = lru_cache(1 << 16)(looked_up)  # a query's words are mostly those of others

        def term_id(word: str) -> int:
            """Return the word's id, or -1. A stranger's endless words are not kept."""
            return known(word) if len(word) <= _KEPT_CHARACTERS else looked_up(word)

        self._split, self.term_id = split, term_id

    def __len__(self) -> int:
        return self._size

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of the text's words that the index knows, in order; empty if it knows none."""
        return [token for word in self._split(text.lower()) if (token := self.term_id(word)) >= 0]
