"""Taking a FAISS index that somebody else made, after it has proved that it is of this corpus and by this encoder.

Vectors of some rows are taken out of the index and compared with those of the same rows' passages. Where they differ, the same is tried
with other prefixes, poolings and rows, so that the message can say what is wrong.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.retrievers.dense import read_faiss
from rag_serving.retrievers.encoder import POOLING, PROFILES

ROWS = 32  # rows whose vectors are compared
_SAME = 0.98  # cosine: above what half precision and SQ8 lose, below what another prefix makes
_SAME_QUANTIZED = 0.8  # product quantisation keeps directions only roughly


def adopt(path: Path, corpus: Corpus, encoder: Any, out: Path) -> None:
    """Put the index at `path` at `out`, without a copy where the file system allows.

    Raises:
        IndexingError: it is of another size or measure, or its vectors are not those of the corpus' passages.
    """
    if not path.is_file():
        raise IndexingError(f"no FAISS index at {path}")
    index = read_faiss(path)
    import faiss

    if (index.ntotal, index.d) != (len(corpus), encoder.dimension):
        raise IndexingError(
            f"{path} holds {index.ntotal} vectors of {index.d} numbers; the corpus has {len(corpus)} passages, "
            f"the encoder makes vectors of {encoder.dimension}"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexingError(f"{path} compares by another measure than the inner product")
    _prove(index, corpus, encoder, path)
    try:
        os.link(path.resolve(), out)
    except OSError:  # another file system
        shutil.copyfile(path, out)


def _prove(index: Any, corpus: Corpus, encoder: Any, path: Path) -> None:
    rows = np.unique(np.linspace(0, len(corpus) - 1, ROWS).astype(int))
    vectors = _reconstructed(index, rows)
    wanted = _SAME_QUANTIZED if "PQ" in type(index).__name__ or "PreTransform" in type(index).__name__ else _SAME
    texts = [corpus[row]["contents"] for row in rows.tolist()]
    found = _cosine(vectors, encoder.passages(texts))
    if found >= wanted:
        return
    told = f"{path} is not this corpus by this encoder: {len(rows)} of its vectors and those of the passages have a cosine of {found:.2f}"
    if (why := _why(index, texts, rows, vectors, encoder, wanted)) is not None:
        raise IndexingError(f"{told}; {why}")
    raise IndexingError(
        f"{told}; with other prefixes, poolings or rows they do not agree either: another encoder or another corpus"
    )


def _why(index: Any, texts: list[str], rows: np.ndarray, vectors: np.ndarray, encoder: Any, wanted: float) -> str | None:
    """Return what would have agreed, if anything that can be tried does."""
    for prefix in dict.fromkeys(["", *(profile.passage_prefix for _, profile in PROFILES)]):
        if prefix != encoder.passage_prefix and _cosine(vectors, encoder.passages(texts, prefix)) >= wanted:
            return f"with --passage-prefix {prefix!r} instead of {encoder.passage_prefix!r} they do"
    for pooling in POOLING:
        if _cosine(vectors, encoder.pooled(pooling).passages(texts)) >= wanted:
            return f"with --pooling {pooling} they do"
    _, nearest = index.search(encoder.passages(texts), 1)
    elsewhere = _reconstructed(index, nearest[:, 0])
    if _cosine(elsewhere, encoder.passages(texts)) >= wanted:
        row = int(np.flatnonzero(nearest[:, 0] != rows)[0])
        return f"the rows are in another order: passage {rows[row]} of the corpus is row {nearest[row, 0]} of the index"
    return None


def _reconstructed(index: Any, rows: np.ndarray) -> np.ndarray:
    import faiss

    with contextlib.suppress(RuntimeError):  # only an IVF index needs a direct map
        faiss.extract_index_ivf(index).make_direct_map()
    return np.stack([index.reconstruct(int(row)) for row in rows])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the median cosine of rows: a few passages longer than a length limit that nobody noted must not decide."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median((a * b).sum(axis=1) / np.maximum(norms, 1e-12)))
