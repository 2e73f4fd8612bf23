"""A BM25 index as FlashRAG builds it (bm25s, stemmed), but streamed and by all cores: FlashRAG holds the whole corpus, a Python list per
passage, and every posting three times.

Memory: the vocabulary (once here and once in each process that splits), 24 bytes a passage, and `memory` for the postings under way.
On disk for a while: 4 bytes per word.
"""

from __future__ import annotations

import os
import shutil
import sys
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from tqdm import tqdm

from rag_serving import IndexingError, MissingExtraError
from rag_serving.corpus import Corpus
from rag_serving.indexing.words import TermIds
from rag_serving.vocabulary import HASHES, hashed, tokenizer

MEMORY = 2 << 30  # bytes for the postings under way, unless said otherwise


@dataclass(frozen=True)
class BM25Options:
    """Settings of a BM25 index.

    Args:
        k1: how much repetitions of a word in a passage count, ≥ 0; at 0 not at all (Robertson's k1).
        b: how much long passages are penalised, 0 to 1. Pyserini's published results are for k1 0.9, b 0.4.
        language: of stop words and stems, see `vocabulary.LANGUAGES`.
        title_weight: how often the words of a passage's title, the first line of several, are counted: 1 to 100.
    """

    k1: float = 1.5
    b: float = 0.75
    language: str = "en"
    title_weight: int = 1

    def check(self) -> None:
        """Raise IndexingError for a value out of its range."""
        if not (0 <= self.k1 < float("inf") and 0 <= self.b <= 1):
            raise IndexingError(f"BM25 needs k1 of 0 or more and b from 0 to 1, got k1 {self.k1} and b {self.b}")
        if not 1 <= self.title_weight <= 100:
            raise IndexingError(f"a title's words are counted 1 to 100 times, got a title weight of {self.title_weight}")
        tokenizer(self.language)

    def described(self) -> dict[str, Any]:
        """Return the settings as an index names them: a title weight of 1 is left out, as in indexes made before
        the option existed."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("title_weight", 1)}


def build_bm25(
    corpus: Corpus,
    directory: Path,
    options: BM25Options | None = None,
    memory: int = MEMORY,
    processes: int = 0,
    before: Path | None = None,
) -> dict[str, Any]:
    """Write `directory/bm25` from the corpus in `directory`; return the settings it was built with.

    `memory`: bytes for the postings under way; `processes`: 0 for one per core; `before`: a `bm25` of the first passages of the corpus,
    built with the same options, which are not split into words again where its files allow that. The result is the same.

    Raises:
        MissingExtraError: bm25s, numba or PyStemmer is not installed.
    """
    try:
        from bm25s import BM25

        from rag_serving.indexing.postings import Unclear, Written, write_postings
    except ImportError as error:
        raise MissingExtraError(error.name or "bm25s") from error
    options, processes = options or BM25Options(), processes or cpu_count()
    final, part = directory / "bm25", directory / "bm25.part"
    for folder in (part, final):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    scratch, ends, total = part / "ids.part", array("q"), 0
    written = Written.read(before) if before is not None else None
    first = len(written.lengths) if written else 0
    terms = TermIds(directory, options.language, processes, first, options.title_weight)
    if written:
        terms.tokenizer.load_vocab(str(before))
    shown: dict[str, Any] = {"disable": None, "file": sys.stderr}
    with (
        scratch.open("wb") as file,
        tqdm(total=len(corpus) - first, desc="splitting into words", unit="passage", **shown) as bar,
    ):
        for ids, lengths in terms:
            ids.tofile(file)
            ends.frombytes((total + np.cumsum(lengths, dtype=np.int64)).tobytes())
            total += len(ids)
            bar.update(len(lengths))
    words = terms.tokenizer
    engine = BM25(k1=options.k1, b=options.b, backend="numba")
    # bm25s writes all that FlashRAG reads; then its arrays, empty here, are replaced
    engine.scores = {**dict.fromkeys(("data", "indices", "indptr"), np.empty(0)), "num_docs": len(corpus)}
    engine.vocab_dict, engine.nonoccurrence_array = words.stem_to_sid, None
    engine.save(str(part), corpus=None)
    words.save_vocab(str(part))
    words.save_stopwords(str(part))
    mapped = np.asarray(np.memmap(scratch, np.int32, "r+")) if total else np.empty(0, np.int32)
    try:
        with tqdm(desc="scoring", unit="posting", unit_scale=True, **shown) as bar:
            write_postings(
                mapped,
                np.frombuffer(ends, np.int64),
                len(words.stem_to_sid),
                part,
                options.k1,
                options.b,
                memory,
                processes,
                bar.update,
                written,
            )
    except Unclear:
        return build_bm25(corpus, directory, options, memory, processes)
    del mapped
    scratch.unlink()
    np.save(part / HASHES, hashed(words.stem_to_sid))
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    part.rename(final)
    return {**options.described(), "method": engine.method}
