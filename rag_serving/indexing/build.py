"""`rag-serving index`: from a corpus to a directory that `rag-serving serve` accepts.

The directory holds `corpus.jsonl` with its offsets and a lookup of ids and titles, `bm25/` and `dense/` as asked for, both in FlashRAG's
formats, and `manifest.json`.
It is built in `.NAME.building` beside its final place, in stages each of which is kept whole or not at all, and renamed at the end: a
directory that exists is complete, and the same command after an interruption goes on with the first stage (or shard of vectors) missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_serving import IndexingError
from rag_serving.corpus import CORPUS, OFFSETS, Corpus
from rag_serving.indexing.bm25 import MEMORY, BM25Options, build_bm25
from rag_serving.indexing.dense import DenseOptions, build_dense
from rag_serving.indexing.formats import Passage, detect, read_corpus
from rag_serving.indexing.manifest import FORMAT_VERSION, MANIFEST, files_of, index_id, write_json
from rag_serving.indexing.replace import put, recover
from rag_serving.lookup import LookupBuilder

ENGINES = ("bm25", "dense")
_REQUEST, _CORPUS_DONE = "request.json", "corpus.done.json"


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
    building = out.with_name(f".{out.name}.building")
    request = {"corpus": _source(corpus), "format": format, "dense": asdict(dense) if dense else None, "bm25": asdict(bm25)}
    with _locked(building, out):
        recover(out)
        if out.exists() and not force:
            raise IndexingError(f"{out} exists: choose another --out, or pass --force to replace it")
        _take_up(building, request)
        try:
            corpus_facts = _kept(building / _CORPUS_DONE, lambda: _write_corpus(corpus, format, building))
        except IndexingError:  # the corpus is at fault: there is nothing to take up
            shutil.rmtree(building)
            raise
        rows = Corpus(building)
        built: dict[str, Any] = {}
        if "bm25" in engines:
            built["bm25"] = _kept(building / "bm25.done.json", lambda: build_bm25(rows, building, bm25, memory, processes))
        if "dense" in engines and dense is not None:
            built["dense"] = _kept(building / "dense.done.json", lambda: build_dense(rows, building, dense, device))
        for done in [*building.glob("*.done.json"), building / _REQUEST]:
            done.unlink()
        for leftover in {"bm25", "dense", "bm25.part", "dense.part", "vectors"} - built.keys():  # of a build with other engines
            shutil.rmtree(building / leftover, ignore_errors=True)
        manifest = {
            "format_version": FORMAT_VERSION,
            "index_id": index_id(corpus_facts["sha256"], built),
            "passages": len(rows),
            "corpus": {"source": corpus.name, "format": format, **corpus_facts},
            "engines": built,
            "files": files_of(building),
            "versions": _versions(),
        }
        write_json(building / MANIFEST, manifest)
        put(building, out)
    return manifest


def _source(corpus: Path) -> list[Any]:
    """Return what tells whether a corpus has changed since an interrupted build."""
    files = sorted(corpus.rglob("*")) if corpus.is_dir() else [corpus]
    try:
        stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    except OSError as error:
        raise IndexingError(f"no corpus at {corpus} ({error})") from None
    if not stats:
        raise IndexingError(f"no corpus at {corpus}")
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@contextlib.contextmanager
def _locked(building: Path, out: Path) -> Iterator[None]:
    building.parent.mkdir(parents=True, exist_ok=True)
    lock = building.with_name(building.name + ".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IndexingError(f"another process is building {out}; wait for it, or end it") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _take_up(building: Path, request: dict[str, Any]) -> None:
    """Keep what an interrupted build of the same request left; drop what another left."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads((building / _REQUEST).read_text()) == request:
            tqdm.write(f"taking up the interrupted build in {building}")
            return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_json(building / _REQUEST, request)


def _kept(done: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` returned when it was done before, else do it."""
    if done.is_file():
        return json.loads(done.read_text())
    result = work()
    write_json(done, result)
    return result


def _write_corpus(corpus: Path, format: str, building: Path) -> dict[str, Any]:
    """Stream the corpus into FlashRAG's form. Memory: 16 bytes a passage (its offset, and a hash of its id), 16 a document."""
    digest, offsets, lookup, repaired = hashlib.sha256(), array("q", [0]), LookupBuilder(), 0
    total = sum(entry[1] for entry in _source(corpus))
    with (
        (building / CORPUS).open("wb") as file,
        tqdm(total=total, unit="B", unit_scale=True, desc="reading passages", disable=None) as bar,
    ):
        for passage in read_corpus(corpus, format, bar.update):
            line, mended = _line(passage)
            repaired += mended
            file.write(line)
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
            lookup.add(json.loads(line) if mended else passage)
        file.flush()
        os.fsync(file.fileno())
    if not lookup.ids:
        raise IndexingError(f"{corpus} has no passages")
    _refuse_repeated(np.frombuffer(lookup.ids, dtype=np.int64), corpus, format)
    lookup.save(building)
    np.save(building / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    return {"sha256": digest.hexdigest(), "bytes": offsets[-1], "repaired": repaired}


def _line(passage: Passage) -> tuple[bytes, bool]:
    """Return the passage's line, and whether a lone surrogate (no Unicode, but JSON can carry it) had to be replaced."""
    text = json.dumps(passage, ensure_ascii=False) + "\n"
    try:
        return text.encode(), False
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode(), True


def _refuse_repeated(hashes: np.ndarray, corpus: Path, format: str) -> None:
    """Find ids that occur twice: by hash first, and only if two are equal by a second reading."""
    ordered = np.sort(hashes)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, int] = {}
    for number, passage in enumerate(read_corpus(corpus, format)):
        if hashes[number] in suspects:
            first = seen.setdefault(passage["id"], number)
            if first != number:
                raise IndexingError(
                    f"{corpus}: the id {passage['id']!r} occurs twice, in passages {first + 1} and {number + 1}; ids must be unique"
                )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("research-rl", "bm25s", "PyStemmer", "faiss-cpu", "sentence-transformers", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
