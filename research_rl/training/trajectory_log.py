"""Trajectories as JSON lines: every writing process has files of its own, which are read back as one table.

A file that has grown to `part_bytes` is closed and compressed (`.jsonl.gz`), and the next one begun. What cannot be written is lost, and
told; it never fails a rollout.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from research_rl.files import write_atomically

PART_BYTES = 64 * 2**20


class TrajectoryLog:
    """Appends records. A process that dies leaves at most one half line, which `read` leaves out."""

    def __init__(self, directory: str | Path, attempt: float = 0.0, share: float = 1.0, part_bytes: int = PART_BYTES) -> None:
        """`directory` is made when it is needed; `attempt` is the start time that all processes of one run share.

        `share`: of the training questions, how many are kept (chosen by their `uid`, all rollouts of a question or none). Validation is
        kept whole.
        """
        self._directory, self._attempt, self._share, self._part_bytes = Path(directory), attempt, share, part_bytes
        self._name = f"{int(time.time() * 1000)}-{socket.gethostname()}-{os.getpid()}"
        self._parts, self._size, self._lost = 0, 0, 0
        self._file: FileIO | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, or say once that it cannot be done."""
        if not self._keeps(record):
            return
        line = json.dumps({"attempt": self._attempt, "time": time.time(), **record}, ensure_ascii=False) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            self._give_up_file()
            self._lost += 1
            if self._lost == 1:
                _tell(
                    f"TRAJECTORIES CANNOT BE WRITTEN to {self._directory}: {error}. The training goes on without them; "
                    "make room or mend the mount, and writing goes on"
                )
            return
        if self._lost:
            _tell(f"trajectories are written to {self._directory} again; {self._lost} were lost")
            self._lost = 0

    def _keeps(self, record: Mapping[str, Any]) -> bool:
        if self._share >= 1 or record.get("validate"):
            return True
        return zlib.crc32(str(record.get("uid")).encode()) < self._share * 2**32

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            # unbuffered: a line is there or not
            self._file = FileIO(self._directory / f"{self._name}-{self._parts:05d}.jsonl", "ab")
        left = memoryview(line)
        while left:  # a disk that is nearly full takes a part of it first
            left = left[self._file.write(left) :]
        self._size += len(line)
        if self._size >= self._part_bytes:
            threading.Thread(target=_compress, args=(Path(self._file.name),), daemon=True).start()
            self._give_up_file()

    def _give_up_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a network file system tells late; the next record will meet it again
                self._file.close()
            self._file, self._size = None, 0
            self._parts += 1


def _tell(text: str) -> None:
    print(f"research_rl: {text}", file=sys.stderr, flush=True)


def _compress(path: Path) -> None:
    def write(part: Path) -> None:
        with path.open("rb") as source, gzip.open(part, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 2**20)

    try:
        write_atomically(path.with_name(f"{path.name}.gz"), write)
        path.unlink()
    except OSError as error:
        _tell(f"{path} stays uncompressed: {error}")


class TrajectoryReader:
    """Reads a directory that is being written, each line once."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._offsets: dict[str, int] = {}  # bytes read of each file, uncompressed
        self._finished: set[str] = set()  # read to the end of their compressed form, which does not grow
        self._records: list[dict[str, Any]] = []

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the records written since the last call, oldest file first."""
        files = [path.name for end in ("jsonl", "jsonl.gz") for path in self._directory.glob(f"[!.]*.{end}")]
        for name in sorted({file.removesuffix(".gz") for file in files} - self._finished):
            text = self._rest(name)
            whole = text[: text.rfind(b"\n") + 1]  # what follows the last line break is still being written, or was cut off
            self._offsets[name] = self._offsets.get(name, 0) + len(whole)
            yield from (json.loads(line) for line in whole.split(b"\n")[:-1])

    def _rest(self, name: str) -> bytes:
        offset = self._offsets.get(name, 0)
        for path, opened in ((self._directory / name, open), (self._directory / f"{name}.gz", gzip.open)):
            try:
                with opened(path, "rb") as file:
                    file.seek(offset)
                    text = file.read()
            except FileNotFoundError:  # compressed in the meantime
                continue
            if opened is gzip.open:
                self._finished.add(name)
            return text
        return b""

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far.

        Of a step that was run twice (the run died and was resumed from a checkpoint before it) only the last attempt's records count.
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
