"""What building an index and adding to one share: a lock, stages that are each kept whole or not at all, the end."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from rag_serving import IndexingError
from rag_serving.indexing.manifest import FORMAT_VERSION, MANIFEST, files_of, index_id, write_json
from rag_serving.indexing.replace import put

CORPUS_DONE = "corpus.done.json"
_REQUEST = "request.json"


@contextlib.contextmanager
def locked(building: Path, out: Path) -> Iterator[None]:
    """Hold the lock on building `out` while the block runs.

    Raises:
        IndexingError: another process holds it.
    """
    lock = building.with_name(building.name + ".lock")
    with _held(lock, out):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _held(lock: Path, out: Path) -> IO[str]:
    while True:
        file = lock.open("w", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise IndexingError(f"another process is building {out}; wait for it, or end it") from None
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its last holder removed it after it was opened here: a third process may lock one of this name


def take_up(building: Path, request: dict[str, Any]) -> None:
    """Keep what an interrupted build of the same request left; drop what another left."""
    # one that cannot be read now may be read later: nothing is dropped
    with contextlib.suppress(FileNotFoundError, ValueError):
        if json.loads((building / _REQUEST).read_text(encoding="utf-8")) == request:
            tqdm.write(f"taking up the interrupted build in {building}")
            return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_json(building / _REQUEST, request)


def kept(done: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the kept result of `work` if an earlier run finished it; else do it."""
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    result = work()
    write_json(done, result)
    return result


def finish(building: Path, out: Path, passages: int, corpus: dict[str, Any], engines: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, put the index in its place, and return it. `corpus`: its source, format, hash and size."""
    other = {"bm25", "dense"} - engines.keys()  # of a build with other engines
    for leftover in [building / "vectors", *(building / name for name in other), *building.glob("*.part")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    notes = [*building.glob("*.done.json"), building / _REQUEST]
    manifest = {
        "format_version": FORMAT_VERSION,
        "index_id": index_id(corpus["sha256"], engines, corpus.get("metadata", {}).get("sha256")),
        "passages": passages,
        "corpus": corpus,
        "engines": engines,
        "files": files_of(building, {note.name for note in notes}),
        "versions": _versions(),
    }
    write_json(building / MANIFEST, manifest)
    # with a note, what is replaced would look like a build to be taken up, which writes into files that may still be served
    for note in (*out.glob("*.done.json"), out / _REQUEST):
        note.unlink(missing_ok=True)
    put(building, out)
    for note in notes:  # until now: what fails before must not cost the stages that are done
        with contextlib.suppress(OSError):
            (out / note.name).unlink()
    return manifest


def _versions() -> dict[str, str]:
    found = {}
    for name in ("research-rl", "bm25s", "PyStemmer", "faiss-cpu", "sentence-transformers", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
