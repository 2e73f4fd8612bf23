"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk, and rename it: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines; return how many."""
    count = 0

    def write(part: Path) -> None:
        nonlocal count
        # UTF-8 has no form for half a surrogate pair: it is written as a JSON escape
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1

    write_atomically(path, write)
    return count


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> list[str]:
    """Return the whole lines of a log (none if there is no log). An unfinished last line, left by a kill, is removed from the file.

    Split at line feeds alone: splitlines() would split at U+2028 in a passage, too.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return whole.split("\n")[:-1]


def changed_settings(path: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return how `settings` differ from those saved in a JSON file ("seed was 1, now 2"); empty if they do not, or none are saved.

    `defaults`: a setting that the file lacks, because an earlier version did not know it, counts as saved with this value.
    """
    if not path.is_file():
        return ""
    saved = json.loads(path.read_text(encoding="utf-8"))
    before = {**{name: value for name, value in defaults.items() if name in settings}, **saved}
    return ", ".join(
        _change(name, before.get(name), settings.get(name))
        for name in {**before, **settings}
        if before.get(name) != settings.get(name)
    )


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):  # name only what differs, unless only the order does
        gone, new = [one for one in before if one not in now], [one for one in now if one not in before]
        if gone or new:
            return f"{name}: " + " and ".join(f"{word} {items}" for word, items in (("without", gone), ("with", new)) if items)
    return f"{name} was {before}, now {now}"
