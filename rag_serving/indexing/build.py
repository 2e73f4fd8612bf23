"""`rag-serving index`: from a corpus to a directory that `rag-serving serve` accepts.

The directory holds `corpus.jsonl` with its offsets and a lookup of ids and titles, `bm25/` and `dense/` as asked for, both in FlashRAG's
formats, and `manifest.json`.
It is built in `.NAME.building` beside its final place, in stages each of which is kept whole or not at all, and renamed at the end: a
directory that exists is complete, and the same command after an interruption goes on with the first stage (or shard of vectors) missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.indexing.bm25 import MEMORY, BM25Options, build_bm25
from rag_serving.indexing.dense import DenseOptions, build_dense
from rag_serving.indexing.formats import detect
from rag_serving.indexing.manifest import MANIFEST, is_index
from rag_serving.indexing.passages import source_of, write_corpus
from rag_serving.indexing.replace import recover
from rag_serving.indexing.stages import CORPUS_DONE, finish, kept, locked, take_up

ENGINES = ("bm25", "dense")


def build_index(
    corpus: Path,
    out: Path,
    force: bool = False,
    engines: Sequence[str] = ("bm25",),
    dense: DenseOptions | None = None,
    format: str | None = None,
    device: str = "cpu",
    bm25: BM25Options | None = None,
    memory: int = MEMORY,
    processes: int = 0,
) -> dict[str, Any]:
    """Build an index of `corpus` in the new directory `out`; return its manifest. An interrupted build of the same is taken up again.

    `memory`: bytes that BM25's postings may take while they are sorted; `processes` that split text into words, 0: one per core.

    Raises:
        IndexingError: the corpus is malformed or empty, `out` exists and `force` is not set, or another process is building it.
    """
    if not engines or not set(engines) <= set(ENGINES):
        raise IndexingError(f"unknown engine in {' '.join(engines)!r}; choose of: {', '.join(ENGINES)}")
    if "dense" in engines and not (dense and dense.encoder):
        raise IndexingError("a dense index needs --encoder, a folder or hub id")
    bm25 = bm25 or BM25Options()
    if "bm25" in engines:
        bm25.check()
    format = format or detect(corpus)
    out = out.resolve()  # a link's target is replaced, not the link; "." has no name
    building = out.with_name(f".{out.name}.building")
    request = {
        "corpus": source_of(corpus),
        "format": format,
        "dense": asdict(dense) if dense else None,
        "bm25": bm25.described(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(building, out):
        recover(out)
        if out.exists() and not out.is_dir():
            raise IndexingError(f"{out} is a file, and an index is a directory: choose another --out")
        if out.exists() and not force:
            raise IndexingError(f"{out} exists: choose another --out, or pass --force to replace it")
        if out.exists() and any(out.iterdir()) and not is_index(out):  # somebody's data, for all that can be known
            raise IndexingError(
                f"{out} is no index (it has no {MANIFEST} of one) and is not replaced: choose another --out, or remove it first"
            )
        take_up(building, request)
        try:
            corpus_facts = kept(building / CORPUS_DONE, lambda: write_corpus(corpus, format, building))
        except IndexingError:  # the corpus is at fault: nothing is kept for another attempt
            shutil.rmtree(building)
            raise
        rows = Corpus(building)
        built: dict[str, Any] = {}
        if "bm25" in engines:
            built["bm25"] = kept(building / "bm25.done.json", lambda: build_bm25(rows, building, bm25, memory, processes))
        if "dense" in engines and dense is not None:
            built["dense"] = kept(building / "dense.done.json", lambda: build_dense(rows, building, dense, device))
        facts = {"source": corpus.name, "format": format, **corpus_facts}
        return finish(building, out, len(rows), facts, built)
