"""What a corpus says of its passages beside their text → `metadata.jsonl`, a line a passage, its offsets and fields (`rag_serving.corpus`).

A line is a JSON object, empty where there is none, `null` where it was left out. Nothing is written before there is something to write.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import orjson
from tqdm import tqdm

from rag_serving.corpus import FIELDS, METADATA, METADATA_OFFSETS, MOST_FIELDS, Corpus
from rag_serving.indexing.manifest import write_json

METADATA_BYTES = 4096  # a passage's at the most, as JSON
_PIECE = 1 << 22  # bytes copied at a time


class MetadataWriter:
    """Takes the metadata of passages in order. Memory, once there is some: 8 bytes a passage."""

    def __init__(self, directory: Path, before: Corpus | None = None) -> None:
        """Write to `directory`, behind what is said of the passages of `before`."""
        self._directory, self._file, self._digest = directory, None, hashlib.sha256()
        self._rows, self._offsets = 0 if before is None else len(before), array("q", [0])
        self._kept, self._left_out, self._first = 0, 0, ""
        self._fields: set[str] | None = set()  # None: too many to be named
        for name in (METADATA, METADATA_OFFSETS, FIELDS):  # of an interrupted build
            (directory / name).unlink(missing_ok=True)
        if before is not None and before.metadata is not None:
            self._offsets = array("q", before.metadata.offsets.tobytes())
            self._fields = None if before.fields is None else set(before.fields)
            for piece in before.metadata.pieces(_PIECE):
                self._write(piece)

    def __enter__(self) -> MetadataWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, metadata: dict[str, Any] | None) -> None:
        """Add the next passage's; None: nothing is said of it."""
        if metadata is not None or self._file is not None:
            while len(self._offsets) <= self._rows:  # the passages before the first of which something is said
                self._line(b"")
            self._line(self._encoded(metadata) if metadata else b"")
        self._rows += 1

    def _encoded(self, metadata: dict[str, Any]) -> bytes:
        try:
            line = orjson.dumps(metadata, default=_plain)
            why = f"{len(line)} bytes"
        except TypeError as error:  # bytes, numbers beyond 64 bits, half a character, nesting without an end
            line, why = b"", f"no JSON: {error}"
        if 0 < len(line) <= METADATA_BYTES:
            self._kept += 1
            if self._fields is not None:
                self._fields.update(metadata)
                self._fields = self._fields if len(self._fields) <= MOST_FIELDS else None
            return line
        self._left_out += 1
        self._first = self._first or f"passage {self._rows + 1}, {why}"
        return b"null"

    def _line(self, line: bytes) -> None:
        self._write(line + b"\n")
        self._offsets.append(self._offsets[-1] + len(line) + 1)

    def _write(self, piece: bytes) -> None:
        if self._file is None:
            self._file: IO[bytes] | None = (self._directory / METADATA).open("wb")
        self._file.write(piece)
        self._digest.update(piece)

    def finish(self) -> dict[str, Any]:
        """Return what the manifest tells of the passages added here, {"metadata": …}; nothing where nothing is said of any.

        What was left out is also told on standard error.
        """
        if self._file is None:
            return {}
        self._file.flush()
        os.fsync(self._file.fileno())
        np.save(self._directory / METADATA_OFFSETS, np.frombuffer(self._offsets, dtype=np.int64))
        write_json(self._directory / FIELDS, None if self._fields is None else sorted(self._fields))
        if self._left_out:
            tqdm.write(
                f"the metadata of {self._left_out} passages are left out, since they are no JSON of up to {METADATA_BYTES} bytes; "
                f"the first: {self._first}",
                file=sys.stderr,
            )
        return {"metadata": {"passages": self._kept, "left_out": self._left_out, "sha256": self._digest.hexdigest()}}


def _plain(value: Any) -> str:
    """Return the text of what a table holds and JSON does not, a decimal or a span of time; of bytes there is none."""
    if isinstance(value, bytes):
        raise TypeError("bytes")
    return str(value)
