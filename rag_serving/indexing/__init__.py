"""Building indexes: `formats` → corpus → `bm25`, `dense` → `manifest`; and `estimate`, before anything is built."""

from rag_serving.indexing.add import add_passages
from rag_serving.indexing.bm25 import BM25Options
from rag_serving.indexing.build import build_index
from rag_serving.indexing.dense import DenseOptions
from rag_serving.indexing.formats import read_corpus
from rag_serving.indexing.manifest import read_manifest

__all__ = ["BM25Options", "DenseOptions", "add_passages", "build_index", "read_corpus", "read_manifest"]
