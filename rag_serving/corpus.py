"""The passages of an index: FlashRAG JSON lines, read through a memory map by row number.

`corpus.jsonl` holds one ``{"id", "contents"}`` per line, `corpus.offsets.npy` the byte at which each line begins and, last, the file's
length (int64, rows + 1). All processes that serve an index share its pages, and none holds the passages in memory of its own.
`metadata.jsonl` and `metadata.offsets.npy` are the same for what the corpus says of its passages beside their text, and
`metadata.fields.json` names its fields (null: they are too many to be named); an index whose corpus says nothing has none of these.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson

from rag_serving import IndexingError
from rag_serving.reading import mapped, small_json

CORPUS, OFFSETS = "corpus.jsonl", "corpus.offsets.npy"
METADATA, METADATA_OFFSETS, FIELDS = "metadata.jsonl", "metadata.offsets.npy", "metadata.fields.json"
MOST_FIELDS = 1_000  # that are named


class Lines:
    """The lines of a file, by row."""

    def __init__(self, directory: Path, name: str, offsets: str) -> None:
        """Map `directory/name`, whose lines begin where `directory/offsets` says.

        Raises:
            IndexingError: one is missing, or they do not belong together.
        """
        self.directory = directory
        try:
            self._offsets = mapped(directory / offsets)
            with (directory / name).open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IndexingError(f"{directory}: {name} cannot be read ({error}); build the index again") from None
        if int(self._offsets[-1]) != len(self._bytes):
            raise IndexingError(
                f"{directory}: {name} has {len(self._bytes)} bytes, {offsets} says {int(self._offsets[-1])}; build the index again"
            )

    @property
    def offsets(self) -> np.ndarray:
        """The byte at which each line begins and, last, the file's length."""
        return np.asarray(self._offsets, dtype=np.int64)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the file, `size` bytes at a time."""
        for start in range(0, len(self._bytes), size):
            yield self._bytes[start : start + size]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def line(self, row: int) -> bytes:
        """Return a row as it stands in the file, without the newline."""
        return self._bytes[int(self._offsets[row]) : int(self._offsets[row + 1]) - 1]

    def size(self, rows: Sequence[int]) -> int:
        """Return the bytes that these rows take together, without reading them."""
        return sum(int(self._offsets[row + 1]) - int(self._offsets[row]) for row in rows)


class Corpus(Lines):
    """Rows of `directory/corpus.jsonl`; `metadata` holds what is said of them beside their text, None: nothing of any."""

    def __init__(self, directory: Path) -> None:
        """Map the files.

        Raises:
            IndexingError: one is missing, or they do not belong together.
        """
        super().__init__(directory, CORPUS, OFFSETS)
        # mapped at once: a directory that is replaced later has the files of another index
        self.metadata = Lines(directory, METADATA, METADATA_OFFSETS) if (directory / METADATA).exists() else None
        if self.metadata is not None and len(self.metadata) != len(self):
            raise IndexingError(f"{directory}: {METADATA} is of another corpus than {CORPUS}; build the index again")
        if (directory / FIELDS).exists():
            self.fields = _named(directory / FIELDS)

    def __getitem__(self, row: int) -> dict[str, str]:
        """Return ``{"id", "contents"}`` of a row."""
        return json.loads(self.line(row))

    def metadata_of(self, row: int) -> bytes:
        """Return a row's metadata as JSON: an object, empty where the corpus says nothing; null where it was too large to be kept."""
        return (self.metadata is not None and self.metadata.line(row)) or b"{}"

    @cached_property
    def fields(self) -> frozenset[str] | None:
        """The fields of the metadata, of any passage; None: more than `MOST_FIELDS`. An index without their file (built before there was
        one) is read through once.
        """
        found: set[str] = set()
        for row in range(len(self.metadata or ())):
            found.update(orjson.loads(self.metadata_of(row)) or ())
            if len(found) > MOST_FIELDS:
                return None
        return frozenset(found)


def _named(path: Path) -> frozenset[str] | None:
    try:
        named = small_json(path)
        if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
            raise ValueError("it is no list of names")
    except (OSError, ValueError) as error:
        raise IndexingError(f"{path} cannot be read ({error}); build the index again") from None
    return None if named is None else frozenset(named)
