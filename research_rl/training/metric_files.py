"""The metrics that verl's file logger leaves in a run: `metrics-*.jsonl`, a new file at every start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def logged(directory: Path) -> list[dict[str, Any]]:
    """Return the rows ``{"step", "data"}`` of a run and its stages, the files in the order in which they were last written.

    A last line without its end is left out: it is being written, or a kill or a full disk has cut it.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(directory.rglob("metrics-*.jsonl"), key=lambda path: path.stat().st_mtime):
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return rows
