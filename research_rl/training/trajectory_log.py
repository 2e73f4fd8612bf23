"""The log of trajectories: every writing process has its own files, which are read back as one table.

They are JSON lines. A file that has grown to `part_bytes` is closed and converted to parquet (see `research_rl.trajectory_files`), and a
new one is begun. Records that cannot be written are lost, which is reported; it never fails a rollout.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from research_rl.errors import MissingExtraError
from research_rl.trajectory_files import Part, parts, to_parquet

PART_BYTES = 64 * 2**20
_COUNTED = 2**20  # bytes written between two checks of the directory's size


class TrajectoryLog:
    """Appends records. A process that dies leaves at most one unfinished line, which readers skip."""

    def __init__(
        self, directory: str | Path, attempt: float = 0.0, share: float = 1.0, part_bytes: int = PART_BYTES,
        max_bytes: float | None = None,
    ) -> None:  # fmt: skip  # many parameters
        """`directory` is made when it is needed; `attempt` is the start time that all processes of one run share.

        `share`: the share of training questions that are logged (chosen by `uid`: all rollouts of a question or none). Validation is
        logged whole. `max_bytes`: limit on the directory, with the files of all processes; each checks it once per MiB that it writes.
        """
        self._directory, self._attempt, self._share, self._part_bytes = Path(directory), attempt, share, part_bytes
        self._max_bytes, self._uncounted, self._full = max_bytes, _COUNTED, False
        self._name = f"{int(time.time() * 1000)}-{socket.gethostname()}-{os.getpid()}"
        self._parts, self._size, self._lost = 0, 0, 0
        self._file: FileIO | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. If that is impossible, report it once."""
        if not self._keeps(record) or self._is_full():
            return
        line = json.dumps({"attempt": self._attempt, "time": time.time(), **record}, ensure_ascii=False) + "\n"
        try:
            self._append(line.encode(errors="backslashreplace"))  # half a surrogate pair becomes a JSON escape
        except OSError as error:
            self._give_up_file()
            self._lost += 1
            if self._lost == 1:
                _tell(
                    f"TRAJECTORIES CANNOT BE WRITTEN to {self._directory}: {error}. The training goes on without them; "
                    "they are written again as soon as there is room, or the mount works"
                )
            return
        if self._lost:
            _tell(f"trajectories are written to {self._directory} again; {self._lost} were lost")
            self._lost = 0

    def _keeps(self, record: Mapping[str, Any]) -> bool:
        if self._share >= 1 or record.get("validate"):
            return True
        return zlib.crc32(str(record.get("uid")).encode()) < self._share * 2**32

    def _is_full(self) -> bool:
        if self._max_bytes is not None and not self._full and self._uncounted >= _COUNTED:
            self._uncounted = 0
            self._full = _bytes_in(self._directory) >= self._max_bytes
            if self._full:
                self._give_up_file()
                _tell(
                    f"NO MORE TRAJECTORIES ARE WRITTEN to {self._directory}: it has reached research_rl.trajectory_max_gb="
                    f"{self._max_bytes / 1e9:g}. The training goes on without them; a stage that ends by a metric uses those that "
                    "are there. To write fewer of each step, lower research_rl.trajectory_share"
                )
        return self._full

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            # unbuffered, so that a line is written at once
            self._file = FileIO(self._directory / f"{self._name}-{self._parts:05d}.jsonl", "ab")
        left = memoryview(line)
        while left:  # a nearly full disk writes a part of it first
            left = left[self._file.write(left) :]
        self._size += len(line)
        self._uncounted += len(line)
        if self._size >= self._part_bytes:
            threading.Thread(target=_close, args=(Path(self._file.name),), daemon=True).start()
            self._give_up_file()

    def _give_up_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(
                OSError
            ):  # a network file system reports errors late; the next record will meet the same one
                self._file.close()
            self._file, self._size = None, 0
            self._parts += 1


def _tell(text: str) -> None:
    print(f"research_rl: {text}", file=sys.stderr, flush=True)


def _bytes_in(directory: Path) -> int:
    sizes = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # just replaced by its closed form
                sizes += entry.stat().st_size
    return sizes


def _close(path: Path) -> None:
    try:
        to_parquet(path)
    except (OSError, ValueError, MissingExtraError) as error:
        _tell(f"{path} stays JSON lines: {error}")


class TrajectoryReader:
    """Reads a directory that is being written: each record once, whatever form its file has by then."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._read: dict[str, Part] = {}
        self._records: list[dict[str, Any]] = []

    @property
    def damaged(self) -> int:
        """Number of lines so far that hold no record and were skipped."""
        return sum(part.damaged for part in self._read.values())

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the records written since the last call, oldest file first."""
        for name in sorted(parts(self._directory) | set(self._read)):
            part = self._read.setdefault(name, Part(self._directory, name))
            before = part.damaged
            for records in part.batches():
                yield from records
            if part.damaged > before:
                _tell(f"{part.damaged - before} damaged lines of {self._directory / name}.jsonl are left out")

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far.

        Of a step that was run twice (because the run resumed from an earlier checkpoint), only the last attempt's records are returned.
        """
        self._records.extend(self.new())
        latest: dict[Any, float] = {}
        for record in self._records:
            latest[_step(record)] = max(latest.get(_step(record), 0.0), record["attempt"])
        return [record for record in self._records if record["attempt"] == latest[_step(record)]]


def _step(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["step"], record["validate"], record["split"]


def read(directory: str | Path) -> list[dict[str, Any]]:
    """Return a directory's records (see `TrajectoryReader.records`)."""
    return TrajectoryReader(directory).records()
