"""A corpus of any format → `corpus.jsonl` with its offsets and its lookup of ids and titles, and what it says beside them."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_serving import IndexingError
from rag_serving.corpus import CORPUS, OFFSETS, Corpus
from rag_serving.indexing.formats import Passage, read_corpus
from rag_serving.indexing.metadata import MetadataWriter
from rag_serving.lookup import Lookup, LookupBuilder

_PIECE = 1 << 22  # bytes copied at a time


def source_of(corpus: Path) -> list[Any]:
    """Return what tells whether a corpus has changed since an interrupted build."""
    files = sorted(corpus.rglob("*")) if corpus.is_dir() else [corpus]
    try:
        stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    except OSError as error:
        raise IndexingError(f"no corpus at {corpus} ({error})") from None
    if not stats:
        raise IndexingError(f"no corpus at {corpus}")
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def write_corpus(corpus: Path, format: str, building: Path, before: Corpus | None = None) -> dict[str, Any]:
    """Stream the corpus into FlashRAG's form, behind the passages of `before`. Memory: 16 bytes a passage (its offset, and a hash of its
    id), 8 more with metadata, and 16 for each name of a document: its title, and its id.

    Raises:
        IndexingError: it is malformed or empty, or an id occurs twice.
    """
    digest, offsets, lookup, repaired = hashlib.sha256(), array("q", [0]), LookupBuilder(), 0
    total = sum(entry[1] for entry in source_of(corpus))
    with (
        (building / CORPUS).open("wb") as file,
        MetadataWriter(building, before) as metadata,
        tqdm(total=total, unit="B", unit_scale=True, desc="reading passages", disable=None) as bar,
    ):
        if before is not None:
            offsets = array("q", before.offsets.tobytes())
            for piece in before.pieces(_PIECE):
                file.write(piece)
                digest.update(piece)
        for passage in read_corpus(corpus, format, bar.update, metadata=True):
            metadata.add(passage.pop("metadata", None))
            line, mended = _line(passage)
            repaired += mended
            file.write(line)
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
            lookup.add(json.loads(line) if mended else passage)
        file.flush()
        os.fsync(file.fileno())
        said = metadata.finish()
    if not lookup.ids:
        raise IndexingError(f"{corpus} has no passages")
    _refuse_repeated(np.frombuffer(lookup.ids, dtype=np.int64), corpus, format)
    known = None
    if before is not None:
        known = Lookup(before)
        _refuse_known(np.frombuffer(lookup.ids, dtype=np.int64), corpus, format, known)
    lookup.save(building, known)
    np.save(building / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    return {"sha256": digest.hexdigest(), "bytes": offsets[-1], "repaired": repaired, **said}


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


def _refuse_known(hashes: np.ndarray, corpus: Path, format: str, known: Lookup) -> None:
    """Find ids that the index has already, as `_refuse_repeated` does."""
    suspects = known.holds(hashes)
    if suspects.any():
        for number, passage in enumerate(read_corpus(corpus, format)):
            if suspects[number] and known.row(passage["id"]) is not None:
                raise IndexingError(
                    f"{corpus}: the id {passage['id']!r} of passage {number + 1} is in the index already; ids must be unique"
                )
