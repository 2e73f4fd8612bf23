"""Trajectories as JSON lines: one file per writing process, read back as one table."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any


class TrajectoryLog:
    """Appends records. A process that dies leaves at most one half line, which `read` leaves out."""

    def __init__(self, directory: str | Path, attempt: float = 0.0) -> None:
        """Start a new file in `directory` (made if needed); `attempt` is the start time that all processes of one run share."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._attempt = attempt
        name = f"{int(time.time() * 1000)}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._file = Path(directory, name).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open as long as the process)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps({"attempt": self._attempt, "time": time.time(), **record}, ensure_ascii=False) + "\n")


class TrajectoryReader:
    """Reads a directory that is being written, each line once."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._offsets: dict[Path, int] = {}  # bytes read of each file
        self._records: dict[Path, list[dict[str, Any]]] = {}

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all files, oldest file first.

        Of a step that was run twice (the run died and was resumed from a checkpoint before it) only the last attempt's records count.
        """
        for path in sorted(self._directory.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]  # what follows the last line break is still being written
            if whole:
                self._offsets[path] = self._offsets.get(path, 0) + len(whole) + 1
                self._records.setdefault(path, []).extend(json.loads(line) for line in whole.split(b"\n"))
        records = [record for path in sorted(self._records) for record in self._records[path]]
        latest: dict[Any, float] = {}
        for record in records:
            latest[record["step"], record["split"]] = max(latest.get((record["step"], record["split"]), 0.0), record["attempt"])
        return [record for record in records if record["attempt"] == latest[record["step"], record["split"]]]


def read(directory: str | Path) -> list[dict[str, Any]]:
    """Return a directory's records (see `TrajectoryReader.records`)."""
    return TrajectoryReader(directory).records()
