"""Filling a Milvus collection: the passages go there with their vectors, and the manifest with the collection."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rag_serving import IndexingError, MissingExtraError
from rag_serving.indexing.dense import DenseOptions, encoder_of
from rag_serving.indexing.formats import detect, read_corpus
from rag_serving.indexing.manifest import FORMAT_VERSION, index_id


def fill_milvus(
    corpus: Path, format: str | None, uri: str, collection: str, token: str, dense: DenseOptions, device: str
) -> dict[str, Any]:
    """Fill `collection` with the passages of `corpus`; return its manifest. Interrupted, run it again: passages replace themselves by id.

    Raises:
        IndexingError: no encoder was named, or the corpus is malformed.
    """
    if not dense.encoder:
        raise IndexingError("Milvus holds vectors: name --encoder, a folder or hub id")
    try:
        from rag_serving.retrievers.milvus import fill
    except ImportError as error:
        raise MissingExtraError(error.name or "pymilvus", "milvus") from error
    encoder = encoder_of(vars(dense), device)
    format, digest = format or detect(corpus), hashlib.sha256()
    for passage in read_corpus(corpus, format):  # a first reading: the whole is checked before anything is written
        digest.update(repr(sorted(passage.items())).encode("utf-8", "replace"))
    built = {
        "milvus": {
            "encoder": dense.encoder,
            "query_prefix": encoder.query_prefix,
            "passage_prefix": encoder.passage_prefix,
            "pooling": dense.pooling,
            "max_length": dense.max_length,
        }
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "index_id": index_id(digest.hexdigest(), built),
        "corpus": corpus.name,
        "engines": built,
    }
    passages = tqdm(read_corpus(corpus, format), desc="encoding and sending", unit="passage", disable=None)
    return {**manifest, "passages": fill(uri, collection, passages, encoder, manifest, token=token)}
