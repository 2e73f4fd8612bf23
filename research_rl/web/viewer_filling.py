"""How the viewer's cache is filled: a pass over the parts of a run, which reads what has been written since the last one."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import zlib
from gzip import BadGzipFile
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from research_rl.errors import DataError, MissingExtraError
from research_rl.recordings import lines_of
from research_rl.trajectory_files import FORMS, Part
from research_rl.web.page import visible
from research_rl.web.viewer_recordings import reader_of
from research_rl.web.viewer_rows import COLUMNS, row
from research_rl.web.viewer_sources import ALARMS, METRICS, RECORDING, Source

if TYPE_CHECKING:
    from research_rl.web.viewer_cache import Cache

CHUNK = 2_000  # records of a transaction; the first has one batch, so that there is soon something to see
HEAD = 64  # bytes by which a file is recognised


class Filling:
    """One pass over the parts of a run."""

    def __init__(self, cache: Cache, connection: sqlite3.Connection) -> None:
        self._cache, self._connection, self._pending = cache, connection, CHUNK

    def fill(self, found: list[Source], stop: Event) -> None:
        sizes = {source: _size(source) for source in found}
        self._cache.total_bytes, done = sum(sizes.values()), 0
        for source in found:
            known = self._connection.execute(
                "SELECT bytes, records, damaged, finished FROM part WHERE directory = ? AND name = ?",
                (str(source.directory), source.name),
            ).fetchone()
            part = Part(source.directory, source.name, *(known[:3] if known else ()))
            part.finished = bool(known and known["finished"])
            if source.kind == RECORDING and not part.finished:
                self._read_recording(source, part, stop)
            elif not part.finished and not (known and sizes[source] == part.bytes):
                self._read(source, part, done, stop)
            if stop.is_set():
                return
            done += sizes[source]
            self._cache.read_bytes = done
        if self._cache.read_bytes and not self._cache.filled:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a long log slows every reader down
        self._cache.filled = True

    def _read(self, source: Source, part: Part, done: int, stop: Event) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for records in part.batches():
                number = part.records - len(records)
                for place, record in enumerate(records, number):
                    part.damaged += not self._add(source, record, place)
                self._pending += len(records)
                if self._pending >= CHUNK or stop.is_set():
                    self._commit(source, part)
                    self._cache.read_bytes = done + part.bytes
                    if stop.is_set():
                        return
                    self._connection.execute("BEGIN IMMEDIATE")
        except (BadGzipFile, ValueError, EOFError, zlib.error):  # a closed part whose bytes are damaged: it is not tried again
            part.damaged, part.finished = part.damaged + 1, True
        except (OSError, MissingExtraError) as error:
            self._cache.told = f"{source.directory / source.name}: {error}"
        if self._connection.in_transaction:
            self._commit(source, part)

    def _read_recording(self, source: Source, part: Part, stop: Event) -> None:
        path = source.directory / source.name
        size, changed = status_of(path)
        self._connection.execute("BEGIN IMMEDIATE")
        left_out: list[tuple[int, str]] = []
        number, record_of = 0, reader_of(path)
        try:
            for number, found in lines_of(path):
                if stop.is_set():  # nothing of it is kept
                    self._connection.execute("ROLLBACK")
                    return
                try:
                    if isinstance(found, DataError):
                        raise found
                    self._add_trajectory(source, record_of(found), number)
                    part.records += 1
                except (DataError, ValueError) as error:
                    left_out.append((number, _reason(error, path, number)))
        except DataError as error:  # neither this line nor what follows can be read
            left_out.append((number + 1, _reason(error, path, number)))
        self._connection.executemany("INSERT INTO left_out VALUES (?, ?)", left_out)
        if left_out:
            told = f"view: {path}: lines left out: {len(left_out)}, the first of them line {left_out[0][0]}: {left_out[0][1]}"
            print(visible(told), file=sys.stderr, flush=True)
        part.bytes, part.finished, part.damaged = size, True, len(left_out)
        self._commit(source, part, changed)

    def _commit(self, source: Source, part: Part, head: int | None = None) -> None:
        path = source.directory / f"{source.name}{FORMS[0]}"
        if part.bytes >= HEAD and path.exists():
            head = head_of(path)
        self._connection.execute(
            "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                source.kind,
                source.label,
                str(source.directory),
                source.name,
                part.bytes,
                part.records,
                part.damaged,
                part.finished,
                head,
            ),
        )
        self._connection.execute("COMMIT")
        self._pending = 0

    def _add(self, source: Source, record: dict[str, Any], number: int) -> bool:
        """Whether a record is one of its kind, and was added."""
        try:
            if source.kind == METRICS:
                self._add_metrics(source.label, record)
            elif source.kind == ALARMS:
                step = record.get("step")
                step = step if isinstance(step, int) and abs(step) < 2**53 else None
                self._connection.execute(
                    "INSERT INTO alarm (label, step, data) VALUES (?, ?, ?)", (source.label, step, json.dumps(record))
                )
            else:
                self._add_trajectory(source, record, number)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return False
        return True

    def _add_metrics(self, label: str, record: dict[str, Any]) -> None:
        step, data = int(record["step"]), record["data"].items()
        rows = [(label, name, step, value) for name, value in data if isinstance(value, int | float) and abs(value) < 2**1000]
        self._connection.executemany(
            "INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?)", [(*one[:3], float(one[3])) for one in rows]
        )

    def _add_trajectory(self, source: Source, record: dict[str, Any], number: int) -> None:
        found, execute = row(record, source.kind, source.label), self._connection.execute
        group = tuple(found[name] for name in ("source", "step", "validate", "split"))
        same = "source = ? AND step IS ? AND validate IS ? AND split = ?"
        latest = execute(f"SELECT latest FROM attempt WHERE {same}", group).fetchone()
        if latest is None:
            execute("INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", (*group, found["attempt"]))
        elif found["attempt"] > latest[0]:  # the run died and was resumed before this step: the last attempt counts
            execute(f"UPDATE attempt SET latest = ? WHERE {same}", (found["attempt"], *group))
            execute(f"UPDATE trajectory SET superseded = 1 WHERE superseded = 0 AND {same}", group)
        key = hashlib.blake2s(f"{source.label}\0{source.name}\0{number}".encode(), digest_size=8).hexdigest()
        superseded = int(latest is not None and found["attempt"] < latest[0])
        marks = ", ".join("?" * (len(COLUMNS) + 2))
        added = execute(
            f"INSERT INTO trajectory (key, superseded, {', '.join(COLUMNS)}) VALUES ({marks})", (key, superseded, *found.values)
        )
        execute("INSERT INTO body VALUES (?, ?)", (added.lastrowid, found.body))
        execute(
            "INSERT INTO words (rowid, question, policy, observation, answer, response) VALUES (?, ?, ?, ?, ?, ?)",
            (added.lastrowid, *found.texts),
        )
        self._connection.executemany("INSERT INTO rule VALUES (?, ?)", [(name, added.lastrowid) for name in found.rules])


def _reason(error: Exception, path: Path, line: int) -> str:
    """Return why a line is left out: without its place, and as a text that UTF-8 can say."""
    return str(error).removeprefix(f"{path}, line {line}: ")[:300].encode("utf-8", "replace").decode()


def status_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _size(source: Source) -> int:
    if source.kind == RECORDING:
        return status_of(source.directory / source.name)[0]
    for form in FORMS:
        try:
            return (source.directory / f"{source.name}{form}").stat().st_size
        except OSError:  # it has the next form
            continue
    return 0


def head_of(path: Path) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(HEAD))
