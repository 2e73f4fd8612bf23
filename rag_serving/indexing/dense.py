"""A FAISS index of the passages' vectors, named as FlashRAG names it. Vectors are kept in shards until the index is written.

Memory while encoding: one shard (`shard` x dimension x 4 bytes). While indexing: the index itself (for Flat, rows x dimension x 4 bytes).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.indexing.adopt import adopt
from rag_serving.indexing.manifest import sha256

if TYPE_CHECKING:
    from rag_serving.retrievers.encoder import Encoder

_TRAIN_PER_LIST = 64  # FAISS asks for at least 39 vectors per centroid


@dataclass(frozen=True)
class DenseOptions:
    """How passages become vectors, and vectors an index."""

    encoder: str = ""
    faiss: str = "Flat"
    query_prefix: str | None = None
    passage_prefix: str | None = None
    pooling: str | None = None
    max_length: int = 256
    shard: int = 50_000
    # a FAISS index of this corpus, made elsewhere with this encoder: taken as it is, nothing is encoded
    adopt: str | None = None
    ef_construction: int = 40  # of HNSW: candidates compared while a vector is linked; 40 is FAISS's own


def encoder_of(settings: Mapping[str, Any], device: str) -> Encoder:
    """Return the encoder that `settings` name, under the keys of `DenseOptions`; in half precision where it is no CPU."""
    from rag_serving.retrievers.encoder import Encoder

    kept = {name: settings[name] for name in ("query_prefix", "passage_prefix", "pooling", "max_length")}
    return Encoder(settings["encoder"], **kept, device=device, half=device != "cpu")


def _emptied(directory: Path) -> Path:
    """Return a new folder for the index, and drop one that an interrupted build left. The vectors stay until all is done."""
    part = directory / "dense.part"
    for folder in (part, directory / "dense"):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    return part


def add_dense(corpus: Corpus, directory: Path, old: Path, settings: dict[str, Any], first: int, device: str) -> dict[str, Any]:
    """Write `directory/dense`: the index in `old`, built with `settings`, and the corpus' passages from `first` on; return the settings."""
    import faiss

    encoder = encoder_of(settings, device)
    index = faiss.read_index(str(old / settings["file"]))
    if index.d != encoder.dimension:
        raise IndexingError(
            f"{old} holds vectors of {index.d} numbers, the encoder makes {encoder.dimension}: another model built it"
        )
    shards, part = directory / "vectors", _emptied(directory)
    shards.mkdir(exist_ok=True)
    encode(corpus, shards, encoder, DenseOptions.shard, first)
    try:
        for file in sorted(shards.glob("*.npy")):
            index.add(np.load(file))
    except RuntimeError:
        raise IndexingError(f"FAISS adds no vectors to an index like {old / settings['file']}: build the index anew") from None
    _write(index, part / settings["file"])
    part.rename(directory / "dense")
    # a type that is trained was trained on the first passages only, so this is not the index that one build of both would give
    return settings if settings["faiss"] == "Flat" else settings | {"added_from": [*settings.get("added_from", ()), first]}


def build_dense(corpus: Corpus, directory: Path, options: DenseOptions, device: str) -> dict[str, Any]:
    """Write `directory/dense`; return the settings it was built with.

    Raises:
        IndexingError: FAISS does not know the index type, or the corpus is too small for it.
    """
    encoder = encoder_of(vars(options), device)
    part = _emptied(directory)
    kind = options.faiss if options.adopt is None else "adopted"
    name = f"{Path(options.encoder).name}_{kind}.index"
    if options.adopt is None:
        _index(corpus, directory / "vectors", encoder, options, part / name)
    else:
        adopt(Path(options.adopt), corpus, encoder, part / name)
    # what is encoded here follows from the settings and the corpus, which name the index; vectors made elsewhere do not
    adopted = {} if options.adopt is None else {"adopted_sha256": sha256(part / name)}
    part.rename(directory / "dense")
    return {
        "encoder": options.encoder,
        "file": name,
        "faiss": kind,
        "dimension": encoder.dimension,
        "query_prefix": encoder.query_prefix,
        "passage_prefix": encoder.passage_prefix,
        "pooling": options.pooling,
        "max_length": options.max_length,
        **adopted,
    }


def _index(corpus: Corpus, shards: Path, encoder: Any, options: DenseOptions, out: Path) -> None:
    import faiss

    try:
        index = faiss.index_factory(encoder.dimension, options.faiss, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise IndexingError(
            f"FAISS does not know the index type {options.faiss!r}; for example: Flat, SQ8, HNSW32, IVF4096,Flat, IVF4096,SQ8, "
            "RaBitQfs,Refine(SQ8), PQ48"
        ) from None
    with contextlib.suppress(RuntimeError):  # refused by what has no graph
        faiss.ParameterSpace().set_index_parameter(index, "efConstruction", options.ef_construction)
    shards.mkdir(exist_ok=True)
    encode(corpus, shards, encoder, options.shard)
    files = sorted(shards.glob("*.npy"))
    if not index.is_trained:
        try:
            index.train(_sample(files, len(corpus), training_vectors(options.faiss)))
        except RuntimeError as error:
            raise IndexingError(f"{options.faiss} cannot be trained on {len(corpus)} passages: {error}") from None
    for file in tqdm(files, desc="adding vectors", unit="shard", disable=None):
        index.add(np.load(file))
    _write(index, out)


def _write(index: Any, path: Path) -> None:
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise IndexingError(f"{path} could not be written ({error}); make room there: the same command goes on") from None


def encode(corpus: Corpus, shards: Path, encoder: Any, shard: int, begin: int = 0) -> None:
    """Write the vectors of `shard` rows each, from row `begin` on, to `shards/i.npy`, float32; those that are there already are kept."""
    with tqdm(total=len(corpus) - begin, desc="encoding", unit="passage", disable=None) as bar:
        for number, start in enumerate(range(begin, len(corpus), shard)):
            rows = range(start, min(start + shard, len(corpus)))
            path = shards / f"{number:05d}.npy"
            if not path.is_file():
                vectors = np.empty((len(rows), encoder.dimension), dtype=np.float32)
                for first in range(0, len(rows), 512):
                    piece = rows[first : first + 512]
                    vectors[first : first + len(piece)] = encoder.passages([corpus[row]["contents"] for row in piece])
                    bar.update(len(piece))
                part = path.with_suffix(".part")
                with part.open("wb") as file:
                    np.save(file, vectors)
                part.rename(path)
            else:
                bar.update(len(rows))


def training_vectors(kind: str) -> int:
    """Return on how many vectors an index of a FAISS type is trained, if there are so many."""
    lists = [
        int(part[3:].split("_")[0]) for part in kind.split(",") if part.startswith("IVF") and part[3:].split("_")[0].isdigit()
    ]
    return max(20_000, _TRAIN_PER_LIST * max(lists, default=0))


def _sample(files: list[Path], rows: int, wanted: int) -> np.ndarray:
    """Return about `wanted` vectors, evenly from all shards."""
    step = max(1, rows // wanted)
    return np.concatenate([np.load(file, mmap_mode="r")[::step] for file in files])
