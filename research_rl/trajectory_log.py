"""Trajectories as JSON lines: one file per writing process, read back as one table."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
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


def read(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all files, oldest file first.

    Of a step that was run twice (the run died and was resumed from a checkpoint before it) only the last attempt's records count.
    """
    records: list[dict[str, Any]] = []
    for path in sorted(Path(directory).glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            records += [json.loads(line) for line in lines if line.endswith("\n")]
    latest: dict[Any, float] = {}
    for record in records:
        latest[record["step"], record["split"]] = max(latest.get((record["step"], record["split"]), 0.0), record["attempt"])
    yield from (record for record in records if record["attempt"] == latest[record["step"], record["split"]])
