"""The viewer's cache of one run, an SQLite file. It is made anew if the run has been replaced, else extended by what is new."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event

from research_rl.errors import ConfigError
from research_rl.trajectory_files import FORMS
from research_rl.web.viewer_filling import Filling, head_of, status_of
from research_rl.web.viewer_rows import COLUMNS
from research_rl.web.viewer_sources import RECORDING, Source, sources

VERSION = 4
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
CREATE TABLE left_out (line INT, why TEXT);
CREATE TABLE alarm (id INTEGER PRIMARY KEY, label TEXT, step INT, data TEXT);
CREATE VIRTUAL TABLE words USING fts5(question, policy, observation, answer, response, content='', columnsize=0, prefix='2 3');
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
            # bytes: a new connection finds in memory what earlier ones have read
            connection.execute("PRAGMA mmap_size = 4294967296")
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
                Filling(self, connection).fill(found, stop or Event())

    def _is_stale(self, found: list[Source]) -> bool:
        """Return whether a file that was read is now missing, shorter, or another one."""
        there = {(str(source.directory), source.name) for source in found}
        with self.connection() as connection:
            for part in connection.execute("SELECT * FROM part"):
                if (part["directory"], part["name"]) not in there:
                    return True
                if part["kind"] == RECORDING:  # it was read as a whole, so any change makes it another file
                    status = status_of(Path(part["directory"]) / part["name"])
                    if status != (part["bytes"], part["head"]):
                        return True
                    continue
                path = Path(part["directory"]) / f"{part['name']}{FORMS[0]}"
                if path.exists() and (path.stat().st_size < part["bytes"] or part["head"] not in (None, head_of(path))):
                    return True
        return False
