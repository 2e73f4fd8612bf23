"""The viewer's cache of one run, an SQLite file. It is made anew if the run has been replaced, else extended by what is new."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from gzip import BadGzipFile
from pathlib import Path
from threading import Event
from typing import Any

from research_rl.errors import ConfigError, MissingExtraError
from research_rl.trajectory_files import FORMS, Part
from research_rl.web.viewer_rows import COLUMNS, row
from research_rl.web.viewer_sources import ALARMS, METRICS, Source, sources

VERSION = 1
CHUNK = 2_000  # records per transaction; the first has one batch, so that something can be shown soon
_HEAD = 64  # bytes at a file's beginning by which it is recognised
_SCHEMA = f"""
CREATE TABLE part (kind TEXT, label TEXT, directory TEXT, name TEXT, bytes INT, records INT, damaged INT, finished INT, head INT,
    PRIMARY KEY (directory, name)) WITHOUT ROWID;
CREATE TABLE trajectory (id INTEGER PRIMARY KEY, key TEXT UNIQUE, superseded INT DEFAULT 0, {", ".join(COLUMNS)});
CREATE INDEX by_group ON trajectory (superseded, source, step, validate, split, stop_reason, data_source, type);
CREATE INDEX by_step ON trajectory (superseded, step);
CREATE INDEX by_score ON trajectory (superseded, score);
CREATE INDEX by_question ON trajectory (question);
CREATE TABLE body (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE rule (name TEXT, id INT, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE attempt (source TEXT, step INT, validate INT, split TEXT, latest REAL, PRIMARY KEY (source, step, validate, split));
CREATE TABLE metric (label TEXT, name TEXT, step INT, value REAL, PRIMARY KEY (label, name, step)) WITHOUT ROWID;
CREATE TABLE alarm (id INTEGER PRIMARY KEY, label TEXT, step INT, data TEXT);
CREATE VIRTUAL TABLE words USING fts5(question, policy, observation, answer, content='', columnsize=0, prefix='2 3');
PRAGMA user_version = {VERSION};
"""


def cache_directory() -> Path:
    """Return the default directory of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "research-rl" / "view"


class Cache:
    """The cache of one run. Every call opens its own connection, so that any thread may read while another one fills it."""

    def __init__(self, run: Path, directory: Path) -> None:
        """Raises:
        ConfigError: `run` holds no trajectories (see `sources`), or the cache cannot be written.
        """
        self.run = run
        sources(run)
        name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        self._file = directory / f"{name}.sqlite"
        self.total_bytes, self.read_bytes, self.filled = 0, 0, False
        self.told: str | None = None  # why the run cannot be read further
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the viewer's cache cannot be written to {directory}: {error}; name another with --cache"
            ) from error

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Open the cache; its rows are read by column name."""
        with closing(sqlite3.connect(self._file, timeout=30, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute(
                "PRAGMA mmap_size = 4294967296"
            )  # bytes: a new connection finds in memory what earlier ones have read
            yield connection

    def _prepare(self) -> None:
        if self._file.exists():
            with suppress(sqlite3.DatabaseError), self.connection() as connection:  # not a database, or a truncated one
                if connection.execute("PRAGMA user_version").fetchone()[0] == VERSION:
                    return
        self._new()

    def _new(self) -> None:
        for end in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + end).unlink(missing_ok=True)
        with self.connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)

    def fill(self, stop: Event | None = None) -> None:
        """Read what the run has written since the last call. If another viewer of the same run is doing so, leave it to that one.

        Raises:
            ConfigError: the run has been removed (see `sources`).
        """
        with self._file.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.filled = True
                return
            found, self.told = sources(self.run), None
            if self._is_stale(found):
                self._new()
            with self.connection() as connection:
                _Filling(self, connection).fill(found, stop or Event())

    def _is_stale(self, found: list[Source]) -> bool:
        """Return whether a file that was read is now missing, shorter, or another one."""
        there = {(str(source.directory), source.name) for source in found}
        with self.connection() as connection:
            for part in connection.execute("SELECT * FROM part"):
                path = Path(part["directory"]) / f"{part['name']}{FORMS[0]}"
                if (part["directory"], part["name"]) not in there:
                    return True
                if path.exists() and (path.stat().st_size < part["bytes"] or part["head"] not in (None, _head(path))):
                    return True
        return False


class _Filling:
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
            if not part.finished and not (known and sizes[source] == part.bytes):
                self._read(source, part, done, stop)
            if stop.is_set():
                return
            done += sizes[source]
            self._cache.read_bytes = done
        if self._cache.read_bytes and not self._cache.filled:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a long write-ahead log slows down every reader
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
        except (BadGzipFile, ValueError, EOFError, zlib.error):  # a damaged closed part: do not try it again
            part.damaged, part.finished = part.damaged + 1, True
        except (OSError, MissingExtraError) as error:
            self._cache.told = f"{source.directory / source.name}: {error}"
        if self._connection.in_transaction:
            self._commit(source, part)

    def _commit(self, source: Source, part: Part) -> None:
        path = source.directory / f"{source.name}{FORMS[0]}"
        head = _head(path) if part.bytes >= _HEAD and path.exists() else None
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
        """Add a record of the source's kind; return whether it is one."""
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
        same = "source = ? AND step IS ? AND validate = ? AND split = ?"
        latest = execute(f"SELECT latest FROM attempt WHERE {same}", group).fetchone()
        if latest is None:
            execute("INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", (*group, found["attempt"]))
        elif found["attempt"] > latest[0]:  # the run was resumed from before this step: the last attempt counts
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
            "INSERT INTO words (rowid, question, policy, observation, answer) VALUES (?, ?, ?, ?, ?)",
            (added.lastrowid, *found.texts),
        )
        self._connection.executemany("INSERT INTO rule VALUES (?, ?)", [(name, added.lastrowid) for name in found.rules])


def _size(source: Source) -> int:
    for form in FORMS:
        try:
            return (source.directory / f"{source.name}{form}").stat().st_size
        except OSError:  # it has the next form
            continue
    return 0


def _head(path: Path) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(_HEAD))
