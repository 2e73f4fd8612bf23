"""From ids and titles to rows of the corpus: sorted 64-bit hashes, memory-mapped, so that 21 million passages cost no memory and no start.

`lookup.ids.npy` (int64, 2 × passages): hashes of ids in order, and their rows. `lookup.documents.npy` (int64, 3 × runs): hashes of document
names in order, and first and last row + 1 of each run of neighbours that share the name. A passage's document has two names: its title, and
its id without the number. A hash only proposes; what is found is compared with what was asked for.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.reading import mapped

IDS, DOCUMENTS = "lookup.ids.npy", "lookup.documents.npy"
_NUMBERED = re.compile(r"(.+)[#_-]\d+", re.DOTALL)
_KINDS = ("title", "document")


def title_of(contents: str) -> str:
    """Return a passage's title: the first line of several, bare; else nothing."""
    first, newline, _ = contents.partition("\n")
    return bare(first) if newline else ""


def bare(title: str) -> str:
    """Return a title without the spaces and the quotes around it; FlashRAG's Wikipedia of 2018 has every title in quotes."""
    title = title.strip()
    return title[1:-1] if len(title) > 1 and title[0] == title[-1] == '"' else title


def document_of(passage: str) -> str:
    """Return a passage's id without its number: `page` of `page#3`, `page-3` and `page_3`; nothing where there is none."""
    numbered = _NUMBERED.fullmatch(passage)
    return numbered[1] if numbered else ""


def _hash(kind: str, name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8, person=kind.encode())
    return int.from_bytes(digest.digest(), "big", signed=True)


class LookupBuilder:
    """Takes the passages in order. Memory: 8 bytes for each, 16 for each run of a name."""

    def __init__(self) -> None:
        self.ids = array("q")
        self._last = dict.fromkeys(_KINDS, "")
        # per kind, begin and end of runs: a hash, or 0 for passages without such a name, and the first row
        self._runs = {kind: (array("q"), array("q")) for kind in _KINDS}

    def add(self, passage: dict[str, str]) -> None:
        """Add the next passage."""
        row = len(self.ids)
        self.ids.append(_hash("id", passage["id"]))
        for kind, name in zip(_KINDS, (title_of(passage["contents"]), document_of(passage["id"])), strict=True):
            if name != self._last[kind]:
                hashes, firsts = self._runs[kind]
                hashes.append(_hash(kind, name) if name else 0)
                firsts.append(row)
                self._last[kind] = name

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both tables."""
        ids = np.frombuffer(self.ids, dtype=np.int64)
        parts = []
        for hashes, firsts in self._runs.values():
            begin = np.frombuffer(firsts, dtype=np.int64)
            end = np.append(begin[1:], len(ids))[: len(begin)]
            run = np.stack([np.frombuffer(hashes, dtype=np.int64), begin, end])
            parts.append(run[:, run[0] != 0])
        return _by_hash(np.stack([ids, np.arange(len(ids))])), _by_hash(np.concatenate(parts, axis=1))

    def save(self, directory: Path, before: Lookup | None = None) -> None:
        """Write both tables; `before` is the lookup of the passages that come before those added here."""
        tables = self.arrays() if before is None else before.followed_by(*self.arrays())
        for name, table in zip((IDS, DOCUMENTS), tables, strict=True):
            np.save(directory / name, table)


def _by_hash(table: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(table[:, np.argsort(table[0], kind="stable")])


class Lookup:
    """Finds rows of `corpus` by names. Reads only, so that any thread may ask."""

    def __init__(self, corpus: Corpus) -> None:
        """Map the tables; where an index has none (built before there were), make them in memory, which reads the corpus once.

        Raises:
            IndexingError: a table is damaged or of another corpus.
        """
        self.corpus = corpus
        files = [corpus.directory / name for name in (IDS, DOCUMENTS)]
        if all(file.is_file() for file in files):
            try:
                self._ids, self._documents = (mapped(file) for file in files)
            except (OSError, ValueError) as error:
                raise IndexingError(f"{corpus.directory}: {error}; build the index again") from None
            if self._ids.shape != (2, len(corpus)):
                raise IndexingError(f"{files[0]} is of another corpus than its neighbour; build the index again")
        else:
            builder = LookupBuilder()
            for row in range(len(corpus)):
                builder.add(corpus[row])
            self._ids, self._documents = builder.arrays()

    def followed_by(self, ids: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both tables of this corpus and one behind it, whose tables are given."""
        size = len(self.corpus)
        ids, documents = ids + np.array([[0], [size]]), documents + np.array([[0], [size], [size]])
        old = np.array(self._documents)
        goes_on = documents[1] == size  # a run that begins the second corpus may end the first
        for column in np.flatnonzero(goes_on):
            same = np.flatnonzero((old[2] == size) & (old[0] == documents[0, column]))
            if len(same):
                old[2, same[0]] = documents[2, column]
            else:
                goes_on[column] = False
        return _by_hash(np.concatenate([self._ids, ids], axis=1)), _by_hash(
            np.concatenate([old, documents[:, ~goes_on]], axis=1)
        )

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Return, per hash of an id, whether a passage here has one of the same hash."""
        return np.isin(hashes, self._ids[0])

    def row(self, passage: str) -> int | None:
        """Return the row of the passage with this id."""
        for (row,) in _found(self._ids, _hash("id", passage)):
            if self.corpus[row]["id"] == passage:
                return row
        return None

    def titled(self, title: str) -> list[range]:
        """Return the runs of rows with this title, in order."""
        title = bare(title)
        return [run for run in self._runs("title", title) if title_of(self.corpus[run.start]["contents"]) == title]

    def document(self, name: str) -> list[range]:
        """Return the runs of rows whose ids are this name and a number, in order."""
        return [run for run in self._runs("document", name) if document_of(self.corpus[run.start]["id"]) == name]

    def around(self, row: int) -> range:
        """Return the rows of the document that holds a row: its neighbours with the same title and, where the id is numbered, the same
        id without the number. Two documents of one title are told apart by their ids. A row without either name is alone.
        """
        passage = self.corpus[row]
        names = zip(_KINDS, (title_of(passage["contents"]), document_of(passage["id"])), strict=True)
        # a run that holds the row has the row's name, whatever else has the same hash
        runs = [run for kind, name in names if name for run in self._runs(kind, name) if row in run]
        return range(max((run.start for run in runs), default=row), min((run.stop for run in runs), default=row + 1))

    def _runs(self, kind: str, name: str) -> list[range]:
        return [range(first, end) for first, end in _found(self._documents, _hash(kind, name))]


def _found(table: np.ndarray, hash: int) -> Iterator[list[int]]:
    # a plain number would be compared as another type, for which numpy copies the whole table
    wanted = np.int64(hash)
    left, right = (int(np.searchsorted(table[0], wanted, side)) for side in ("left", "right"))
    for column in range(left, right):
        yield [int(value) for value in table[1:, column]]


def merged(runs: list[range]) -> list[range]:
    """Return the same rows in order, each once."""
    merged: list[range] = []
    for run in sorted(runs, key=lambda run: run.start):
        if merged and run.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
        else:
            merged.append(run)
    return merged
