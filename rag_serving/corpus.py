"""The passages of an index: FlashRAG JSON lines, read through a memory map by row number.

`corpus.jsonl` holds one ``{"id", "contents"}`` per line, `corpus.offsets.npy` the byte at which each line begins and, last, the file's
length (int64, rows + 1). All processes that serve an index share its pages, and none holds the passages in memory of its own.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rag_serving import IndexingError

CORPUS, OFFSETS = "corpus.jsonl", "corpus.offsets.npy"


class Corpus:
    """Rows of `directory/corpus.jsonl`."""

    def __init__(self, directory: Path) -> None:
        """Map the files.

        Raises:
            IndexingError: one is missing, or they do not belong together.
        """
        self.directory = directory
        try:
            self._offsets = np.load(directory / OFFSETS, mmap_mode="r")
            with (directory / CORPUS).open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IndexingError(f"{directory}: the corpus cannot be read ({error}); build the index again") from None
        if int(self._offsets[-1]) != len(self._bytes):
            raise IndexingError(
                f"{directory}: {CORPUS} has {len(self._bytes)} bytes, {OFFSETS} says {int(self._offsets[-1])}; build the index again"
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

    def __getitem__(self, row: int) -> dict[str, str]:
        """Return ``{"id", "contents"}`` of a row."""
        return json.loads(self.line(row))

    def line(self, row: int) -> bytes:
        """Return a row as it stands in the file, without the newline."""
        return self._bytes[int(self._offsets[row]) : int(self._offsets[row + 1]) - 1]
