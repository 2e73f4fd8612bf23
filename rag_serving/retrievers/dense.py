"""Dense retrieval: an encoder, a vector engine, the corpus.

Engines: FAISS (any index that `rag-serving index` builds), and exact search by matrix product in torch, for a GPU on which
faiss-gpu is not to be had. Both return rows and inner products, best first.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError, MissingExtraError
from rag_serving.corpus import Corpus
from rag_serving.retrievers.base import ANY_K, Hit, Retriever
from rag_serving.retrievers.encoder import Encoder

_SPARE = 8  # passages asked for beyond k, among which equal scores are put in order


class VectorEngine(ABC):
    """Nearest neighbours by inner product. `nested`: whether all of the same vectors are compared, with the same scores, whatever k is."""

    size: int
    dimension: int
    nested: bool = False

    @abstractmethod
    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 [queries, k] and rows int64 [queries, k]; row -1 where there are fewer than k."""


def read_faiss(path: Path) -> Any:
    """Return the FAISS index in a file, memory-mapped where its type can be.

    Raises:
        IndexingError: the file is no index.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(error.name or "faiss-cpu") from error
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexingError(f"{path} is no FAISS index ({str(error).splitlines()[-1]}); build it again") from None


def _nested(index: Any) -> bool:
    """Whether a FAISS index looks at the same vectors for every k. HNSW's candidates and Refine's grow with it; PQ is untried."""
    import faiss

    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    return type(index) in (
        faiss.IndexFlat,
        faiss.IndexFlatIP,
        faiss.IndexScalarQuantizer,
        faiss.IndexIVFFlat,
        faiss.IndexIVFScalarQuantizer,
    )


class FaissEngine(VectorEngine):
    """A FAISS index; `nprobe` (IVF), `ef_search` (HNSW) and `refine` (Refine: candidates over k) trade recall for time."""

    def __init__(self, path: Path, nprobe: int = 64, ef_search: int = 128, refine: int = 10, threads: int = 0) -> None:
        """`threads` of a search; 0: as many as FAISS takes."""
        self._index, self._threads = read_faiss(path), threads
        import faiss

        # FAISS 1.15 multiplies matrices only from 128,000 queries on; from 4 on, a batch of 32 over a Flat index is three times faster
        faiss.cvar.distance_compute_blas_threshold = 4
        self.size, self.dimension, self.nested = self._index.ntotal, self._index.d, _nested(self._index)
        # reaches through the wrappers OPQ, PCA, Refine and IDMap, and refuses what an index does not have
        for name, value in (
            ("nprobe", nprobe),
            ("efSearch", ef_search),
            ("quantizer_efSearch", ef_search),
            ("k_factor_rf", refine),
        ):
            with contextlib.suppress(RuntimeError):
                faiss.ParameterSpace().set_index_parameter(self._index, name, value)

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._threads:
            import faiss

            faiss.omp_set_num_threads(
                self._threads
            )  # holds for the thread that calls it, which need not be the one that loaded
        return self._index.search(vectors, k)


class TorchEngine(VectorEngine):
    """Exact search over a Flat index's vectors, `chunk` passages at a time; half precision on a GPU.

    With several devices each holds a part of the vectors, as equal as can be; they search side by side.
    """

    nested = True

    def __init__(self, path: Path, devices: Sequence[str] = ("cpu",), chunk: int = 1_000_000) -> None:
        """Copy the vectors to the devices.

        Raises:
            IndexingError: the index is of another type than Flat, so its vectors are not in it.
        """
        import faiss
        import torch

        owner = read_faiss(path)  # what is downcast does not keep the vectors alive
        index = faiss.downcast_index(owner)
        if not isinstance(index, faiss.IndexFlat):
            raise IndexingError(
                f"{path} is a {type(index).__name__}: the torch engine needs the exact vectors; build with --faiss Flat"
            )
        self.size, self.dimension, self._chunk = index.ntotal, index.d, chunk
        flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        bounds = [self.size * part // len(devices) for part in range(len(devices) + 1)]
        self._parts: list[tuple[int, Any]] = []  # the first row, and the vectors from it on
        for device, first, end in zip(devices, bounds, bounds[1:], strict=False):
            dtype = torch.float32 if device == "cpu" else torch.float16
            held = torch.empty((end - first, self.dimension), dtype=dtype, device=device)
            for start in range(first, end, chunk):  # in pieces: the float32 copy of the whole never exists
                piece = torch.from_numpy(flat[start : min(end, start + chunk)].copy())
                held[start - first : start - first + len(piece)] = piece.to(device, dtype)
            self._parts.append((first, held))

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        queries = torch.from_numpy(vectors)
        with torch.inference_mode():
            # a GPU is only told what to do: all of them work before the first is waited for
            found = [self._best(queries, held, first, k) for first, held in self._parts]
            scores, rows = (torch.cat([part[column].cpu() for part in found], dim=1) for column in (0, 1))
            best = scores.topk(min(k, self.size), dim=1)
        return best.values.numpy(), rows.gather(1, best.indices).numpy()

    def _best(self, queries: Any, held: Any, first: int, k: int) -> tuple[Any, Any]:
        """Return the scores and rows [queries, at most k] of one device's vectors."""
        import torch

        queries = queries.to(held.device, held.dtype)
        # half precision is for the vectors' room only: sums rounded to it would put other passages first
        summed: Any = {} if held.dtype is torch.float32 else {"out_dtype": torch.float32}
        scores = torch.empty((len(queries), 0), dtype=torch.float32, device=held.device)
        rows = torch.empty((len(queries), 0), dtype=torch.int64, device=held.device)
        for start in range(0, len(held), self._chunk):
            product = torch.mm(queries, held[start : start + self._chunk].T, **summed)
            found = product.topk(min(k, product.shape[1]), dim=1)
            scores = torch.cat([scores, found.values], dim=1)
            rows = torch.cat([rows, found.indices + first + start], dim=1)
            best = scores.topk(min(k, scores.shape[1]), dim=1)
            scores, rows = best.values, rows.gather(1, best.indices)
        return scores, rows


class Dense(Retriever):
    """Passages whose vectors are nearest to the query's."""

    def __init__(self, engine: VectorEngine, encoder: Encoder, corpus: Corpus) -> None:
        """Join an engine, an encoder and a corpus.

        Raises:
            IndexingError: their sizes differ, so they do not belong together.
        """
        if engine.size != len(corpus):
            raise IndexingError(
                f"the index has {engine.size} vectors and the corpus {len(corpus)} passages; build the index again"
            )
        if engine.dimension != encoder.dimension:
            raise IndexingError(
                f"the index holds vectors of {engine.dimension} numbers, the encoder makes {encoder.dimension}: another model built it"
            )
        self._engine, self._encoder, self._corpus = engine, encoder, corpus
        self.nested_to = ANY_K if engine.nested else 0

    @property
    def size(self) -> int:
        return len(self._corpus)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if not queries or k < 1:
            return [[] for _ in queries]
        scores, rows = self._best(self._encoder.queries(queries), min(k, self.size))
        return [
            [
                Hit.of_line(self._corpus.line(row), score)
                for row, score in zip(found.tolist(), values.tolist(), strict=True)
                if row >= 0
            ]
            for found, values in zip(rows, scores, strict=True)
        ]

    def _best(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows [queries, k] by falling score, equal ones by row: which of them an engine returns is its own affair."""
        asked = min(self.size, k + _SPARE)
        while True:
            scores, rows = self._engine.search(vectors, asked)
            # as long as the last found equals the k-th, passages with that score may be missing
            if asked == self.size or not np.any((scores[:, -1] == scores[:, k - 1]) & (rows[:, -1] >= 0)):
                break
            asked = min(self.size, 4 * asked)
        order = np.lexsort((rows, -scores, rows < 0))[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
