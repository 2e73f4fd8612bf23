"""Retrievers, and the one place that chooses among them."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_serving import IndexingError, ServingError
from rag_serving.retrievers.base import DummyRetriever, Hit, Retriever
from rag_serving.settings import DEFAULT_INDEX, Settings

if TYPE_CHECKING:
    from rag_serving.corpus import Corpus
    from rag_serving.cut_off import Files

__all__ = ["DummyRetriever", "Hit", "Opened", "Retriever", "load_index", "open_retriever"]

log = logging.getLogger("rag_serving")
Report = Callable[[str], None]
# transformers changes torch's defaults for the whole process while it loads a model: one at a time
_MODEL = threading.Lock()


@dataclass(frozen=True)
class Opened:
    """A retriever and its names: of the index, and of index and settings together (a cached answer is valid for one of these).

    `engine` names what searches; `corpus` is what can be read on in, None where the passages are elsewhere (the web, Milvus).
    """

    retriever: Retriever
    index_id: str
    fingerprint: str
    engine: str = ""
    corpus: Corpus | None = None
    hashing: Any = None  # of an index too large to be hashed before it is served (`indexing.verify.Hashing`)
    files: Files | None = None


# what changes an answer; the rest of the settings changes only how it is served
_ANSWER_SETTINGS = (
    "retriever",
    "encoder",
    "query_prefix",
    "half",
    "vector_engine",
    "device",
    "nprobe",
    "ef_search",
    "refine",
    "fusion_depth",
    "fusion_k",
    "reranker",
    "rerank_depth",
    "web_url",
    "web_pages",
    "milvus_uri",
    "milvus_collection",
)


def open_retriever(settings: Settings, report: Report = lambda stage: None) -> Opened:
    """Load what the settings name; `report` is told each stage.

    Raises:
        ServingError: the index is missing, damaged or of another kind than asked for.
        MissingExtraError: a package is not installed.
    """
    corpus: Corpus | None = None
    engine: str = settings.retriever
    hashing = files = None
    if settings.retriever == "web":
        from rag_serving.retrievers.web import WebSearch

        retriever: Retriever = WebSearch(
            settings.web_url, settings.web_key.get_secret_value(), settings.web_cache, fetch_pages=settings.web_pages
        )
        index_id = "web"
    elif settings.retriever == "milvus":
        report("connecting to Milvus")
        from rag_serving.retrievers.milvus import Milvus

        retriever = Milvus(
            settings.milvus_uri,
            settings.milvus_collection,
            lambda filled_with: _encoder(settings, filled_with),
            settings.milvus_token.get_secret_value(),
        )
        index_id = str(retriever.manifest.get("index_id", settings.milvus_collection))
    else:
        retriever, index_id, engine, corpus = _open_index(settings, report)
        hashing, files = _unless_replaced(settings, index_id)
    if settings.reranker:
        report("loading the reranker")
        from rag_serving.retrievers.rerank import Reranked

        with _MODEL:
            retriever = Reranked(retriever, settings.reranker, settings.rerank_depth, settings.devices[0])
        engine += ", reranked"
    chosen = {name: str(getattr(settings, name)) for name in _ANSWER_SETTINGS}
    fingerprint = hashlib.sha256(json.dumps([index_id, chosen], sort_keys=True).encode()).hexdigest()[:16]
    return Opened(retriever, index_id, fingerprint, engine, corpus, hashing, files)


def _unless_replaced(settings: Settings, index_id: str) -> tuple[Any, Files]:
    """Return what hashes the files later, if that is wanted, and the files."""
    from rag_serving.cut_off import Files
    from rag_serving.indexing.manifest import large, read_manifest
    from rag_serving.indexing.verify import Hashing

    directory = settings.directory
    assert directory is not None
    manifest = read_manifest(directory)
    hashing, files = (
        Hashing(directory, manifest) if settings.verify == "auto" and large(manifest) else None,
        Files(directory, manifest),
    )
    if read_manifest(directory)["index_id"] != index_id:  # what was loaded may be of both
        raise IndexingError(f"{directory} was replaced while it was being loaded; load it again")
    return hashing, files


def load_index(directory: Path | str, **settings: Any) -> Retriever:
    """Return the retriever of an index made by `rag-serving index`, to be used without a server.

    Raises:
        ServingError: the index is missing or damaged.
    """
    return open_retriever(Settings(index={DEFAULT_INDEX: Path(directory)}, **settings)).retriever


def _open_index(settings: Settings, report: Report) -> tuple[Retriever, str, str, Corpus | None]:
    """Return the retriever, the index's id, what searches, and the passages that may be read on in."""
    from rag_serving.corpus import Corpus
    from rag_serving.indexing.manifest import check, read_manifest
    from rag_serving.indexing.structure import check_structure

    directory = settings.directory
    if directory is None:
        raise ServingError("no index: give --index DIR, a directory made by `rag-serving index`")
    manifest = read_manifest(directory)
    report("checking the files against the manifest")
    check(directory, manifest, settings.verify)
    check_structure(directory, manifest)
    name = str(manifest["index_id"])
    if settings.retriever in ("random", "nothing"):
        from rag_serving.retrievers.controls import Nothing, RandomPassages

        if settings.retriever == "nothing":
            return Nothing(), name, "nothing", None
        corpus = Corpus(directory)
        return RandomPassages(corpus), name, "random", corpus
    held = list(manifest["engines"])
    wanted = (
        held if settings.retriever == "auto" else ["bm25", "dense"] if settings.retriever == "hybrid" else [settings.retriever]
    )
    if missing := [engine for engine in wanted if engine not in held]:
        raise ServingError(
            f"{directory} holds {' and '.join(held)}, not {missing[0]}; build it with: rag-serving index --engine {' '.join(wanted)}"
        )
    corpus = Corpus(directory)
    retrievers: list[Retriever] = []
    if "bm25" in wanted:
        report("loading the BM25 index")
        from rag_serving.retrievers.bm25 import BM25

        language = manifest["engines"]["bm25"].get("language", "en")
        retrievers.append(BM25(directory / "bm25", corpus, settings.engine_threads, language))
    if "dense" in wanted:
        retrievers.append(_dense(settings, directory, manifest["engines"]["dense"], corpus, report))
    if len(retrievers) == 1:
        return retrievers[0], name, wanted[0], corpus
    from rag_serving.retrievers.hybrid import Hybrid

    return Hybrid(retrievers, settings.fusion_depth, settings.fusion_k), name, "hybrid", corpus


def _encoder(settings: Settings, built_with: dict[str, Any]) -> Any:
    from rag_serving.retrievers.encoder import Encoder

    model, prefix = settings.encoder or built_with.get("encoder"), settings.query_prefix
    if model is None:
        raise ServingError("what encoder made the vectors is not written beside them; give --encoder, a folder or hub id")
    if prefix is None:
        prefix = built_with.get("query_prefix")
    elif prefix != built_with.get("query_prefix", prefix):
        log.warning("query_prefix is %r, as the settings say; the index was built for %r", prefix, built_with["query_prefix"])
    with _MODEL:
        return Encoder(
            model,
            query_prefix=prefix,
            passage_prefix=built_with.get("passage_prefix"),
            pooling=built_with.get("pooling"),
            max_length=built_with.get("max_length"),
            device=settings.devices[0],
            half=settings.half,
        )


def _dense(settings: Settings, directory: Path, built_with: dict[str, Any], corpus: Any, report: Report) -> Retriever:
    import torch

    from rag_serving.retrievers.dense import Dense, FaissEngine, TorchEngine

    torch.set_num_threads(settings.engine_threads)
    report("loading the encoder")
    encoder = _encoder(settings, built_with)
    report("loading the vectors")
    path = directory / "dense" / built_with["file"]
    if settings.vector_engine == "torch":
        return Dense(TorchEngine(path, settings.devices), encoder, corpus)
    engine = FaissEngine(path, settings.nprobe, settings.ef_search, settings.refine, settings.engine_threads)
    return Dense(engine, encoder, corpus)
