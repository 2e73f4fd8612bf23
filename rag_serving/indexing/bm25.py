"""A BM25 index as FlashRAG builds it (bm25s, English stems), but streamed: FlashRAG holds the whole corpus and a Python list per passage.

Memory: 4 bytes per word for the ids, then 12 bytes per distinct word of a passage for the scores and twice that while they are sorted.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rag_serving.corpus import Corpus
from rag_serving.retrievers.bm25 import tokenizer


class TokenIds:
    """The passages' token ids in two flat arrays; bm25s iterates over it as over a list of lists."""

    def __init__(self) -> None:
        self._ids, self._ends = array("i"), array("q")

    def append(self, ids: list[int]) -> None:
        """Add a passage."""
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[array]:
        start = 0
        for end in self._ends:
            yield self._ids[start:end]
            start = end


def build_bm25(corpus: Corpus, directory: Path) -> dict[str, Any]:
    """Write `directory/bm25`; return the settings it was built with."""
    words = tokenizer()
    from bm25s import BM25

    final, part = directory / "bm25", directory / "bm25.part"
    for folder in (part, final):
        shutil.rmtree(folder, ignore_errors=True)
    ids = TokenIds()
    texts = (corpus[row]["contents"] for row in range(len(corpus)))
    for tokens in tqdm(
        words.streaming_tokenize(texts), total=len(corpus), desc="splitting into words", unit="passage", disable=None
    ):
        ids.append(tokens)
    engine = BM25(backend="numba")
    lists: Any = ids  # index() asks for lists; its own two steps do not
    stems = list(words.stem_to_sid.values())
    engine.scores = engine.build_index_from_ids(stems, lists, show_progress=_shown(), leave_progress=True)
    engine.vocab_dict = words.stem_to_sid
    engine.save(str(part), corpus=None)
    words.save_vocab(str(part))
    words.save_stopwords(str(part))
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    part.rename(final)
    return {"k1": engine.k1, "b": engine.b, "method": engine.method, "language": "en"}


def _shown() -> bool:
    import sys

    return sys.stderr.isatty()
