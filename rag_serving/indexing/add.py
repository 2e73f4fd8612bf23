"""`rag-serving index --add`: an index with more passages, without splitting or encoding again those that it has.

What was counted for BM25 is read back from its scores, and all are scored anew: its ids and scores are those of an index of both corpora,
bit for bit. Vectors of the new passages are added to the FAISS index. All is done beside the index, which is replaced at the end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.indexing.bm25 import MEMORY, BM25Options, build_bm25
from rag_serving.indexing.dense import add_dense
from rag_serving.indexing.formats import detect
from rag_serving.indexing.manifest import check, read_manifest
from rag_serving.indexing.passages import source_of, write_corpus
from rag_serving.indexing.replace import recover
from rag_serving.indexing.stages import CORPUS_DONE, finish, kept, locked, take_up
from rag_serving.indexing.structure import check_structure


def add_passages(
    corpus: Path, index: Path, format: str | None = None, device: str = "cpu", memory: int = MEMORY, processes: int = 0
) -> dict[str, Any]:
    """Replace `index` by one that has the passages of `corpus` behind its own; return the manifest. Interrupted, the same command goes on.

    Raises:
        IndexingError: the corpus is malformed or empty, one of its ids is in the index already, or the index is damaged or being built.
    """
    format = format or detect(corpus)
    index = index.resolve()  # a link's target is replaced, not the link; "." has no name
    building = index.with_name(f".{index.name}.building")
    if not index.parent.is_dir():
        read_manifest(index)  # raises if there is no index, before anything is made
    with locked(building, index):
        recover(index)
        old = read_manifest(index)
        check(index, old)
        check_structure(index, old)
        take_up(building, {"add": source_of(corpus), "format": format, "to": old["index_id"]})
        before = Corpus(index)
        try:
            facts = kept(building / CORPUS_DONE, lambda: write_corpus(corpus, format, building, before))
        except IndexingError:  # the corpus is at fault: nothing is kept for another attempt
            shutil.rmtree(building)
            raise
        rows, built = Corpus(building), dict(old["engines"])
        if "bm25" in built:
            settings = {name: value for name, value in built["bm25"].items() if name in BM25Options.__dataclass_fields__}
            built["bm25"] = kept(
                building / "bm25.done.json",
                lambda: build_bm25(rows, building, BM25Options(**settings), memory, processes, index / "bm25"),
            )
        if "dense" in built:
            built["dense"] = kept(
                building / "dense.done.json",
                lambda: add_dense(rows, building, index / "dense", old["engines"]["dense"], len(before), device),
            )
        facts["repaired"] += old["corpus"].get("repaired", 0)
        for name in ("passages", "left_out") if "metadata" in facts else ():
            facts["metadata"][name] += old["corpus"].get("metadata", {}).get(name, 0)
        added = [*old["corpus"].get("added", ()), {"source": corpus.name, "passages": len(rows) - len(before)}]
        return finish(building, index, len(rows), {**old["corpus"], **facts, "added": added}, built)
