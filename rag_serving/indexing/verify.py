"""All that can be known of an index: every file's hash, its structure, passages found by their own words; and hashes while it is served."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import IndexingError, ServingError
from rag_serving.corpus import Corpus
from rag_serving.indexing.manifest import check, read_manifest
from rag_serving.indexing.structure import check_structure

log = logging.getLogger("rag_serving")

SAMPLED, DEPTH, ENOUGH = (
    32,
    10,
    0.75,
)  # passages looked for; among how many hits; the share that must be found (PQ finds not all)


def verify(directory: Path) -> list[str]:
    """Return what was found right, a line each.

    Raises:
        ServingError: what is wrong, and what to do.
    """
    manifest = read_manifest(directory)
    check(directory, manifest, "always")
    told = [f"{len(manifest['files'])} files have the hashes of the manifest"]
    check_structure(directory, manifest)
    told.append(f"{manifest['passages']} passages; arrays, offsets and types fit them")
    if said := manifest["corpus"].get("metadata"):
        told.append(f"{said['passages']} passages have metadata; those of {said['left_out']} more were left out")
    corpus = Corpus(directory)
    return told + [_found_again(directory, corpus, engine) for engine in manifest["engines"]]


def _found_again(directory: Path, corpus: Corpus, engine: str) -> str:
    from rag_serving.retrievers import load_index

    rows = np.unique(np.linspace(0, len(corpus) - 1, SAMPLED).astype(np.int64)).tolist()
    texts = [text for row in rows if len((text := corpus[row]["contents"]).split()) > 2]  # fewer words may all be stop words
    retriever = load_index(directory, retriever=engine, verify="never")
    found = retriever.search(texts, DEPTH)
    retriever.close()
    # by their text: passages of equal text are found in the place of each other
    right = sum(text in {hit.contents for hit in hits} for text, hits in zip(texts, found, strict=True))
    if right < ENOUGH * len(texts):
        raise IndexingError(
            f"{directory}: {engine} finds {right} of {len(texts)} passages by their own words, though its files are those that "
            "were built: build the index again, with these versions of the packages"
        )
    return f"{engine} finds {right} of {len(texts)} sampled passages by their own words"


class Hashing:
    """Compares hashes while the index is served, in a thread of low priority, from files opened at once: a new index in the same place
    changes nothing of it. What is said of them names no directory: anybody may read it in `/readyz`."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self._files = manifest["files"]
        self._open: dict[str, Any] = {name: (directory / name).open("rb") for name in self._files}

    def start(self, damaged: Callable[[ServingError], None]) -> None:
        """Begin; `damaged` is called, in the thread, if a file is another one."""
        threading.Thread(target=self._run, args=(damaged,), name="hashes", daemon=True).start()

    def _run(self, damaged: Callable[[ServingError], None]) -> None:
        started = time.monotonic()
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread only
        try:
            for name, file in self._open.items():
                if hashlib.file_digest(file, "sha256").hexdigest() != self._files[name]["sha256"]:
                    raise IndexingError(
                        f"{name} is not the file this index was built with (its hash differs); build the index again"
                    )
            log.info("all %d files of the index have their hashes, after %.0f s", len(self._open), time.monotonic() - started)
        except (ServingError, OSError) as error:
            damaged(
                error
                if isinstance(error, ServingError)
                else IndexingError(f"a file cannot be read ({error.strerror or type(error).__name__})")
            )
        finally:
            for file in self._open.values():
                file.close()
