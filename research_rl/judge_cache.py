"""A cache of judges' replies, so that nothing is asked, or paid for, twice."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reply:
    """A judge's reply, and what it cost in tokens."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


class Replies:
    """Replies by `judge.key`: the latest ones in memory, or all of them in a file of JSON lines, to which several processes may append.

    A line that a kill has cut off is skipped. If the file cannot be written, that is reported once, and replies are kept in memory only.
    """

    def __init__(self, cache: int | str | Path) -> None:
        """`cache`: the number of replies kept in memory, or the path of the file."""
        self._found: OrderedDict[str, Reply] = OrderedDict()
        self._most = cache if isinstance(cache, int) else None
        self._path = None if isinstance(cache, int) else Path(cache)
        self._ends_line = True
        if self._path is not None and self._path.is_file():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            self._ends_line = text.endswith("\n") or not text
            for line in text.split("\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row["text"], str):
                        self._found[row["key"]] = Reply(row["text"], row["tokens_in"], row["tokens_out"])

    def get(self, key: str) -> Reply | None:
        """Return a reply, None if there is none."""
        if found := self._found.get(key):
            self._found.move_to_end(key)
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Remember a reply."""
        self._found[key] = reply
        if self._most is not None and len(self._found) > self._most:
            self._found.popitem(last=False)
        if self._path is None:
            return
        row = json.dumps({"key": key, **vars(reply)}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:  # a whole line in one write, so that the lines of several processes do not mix
                file.write(("" if self._ends_line else "\n").encode() + row.encode())
            self._ends_line = True
        except OSError as error:
            print(
                f"research_rl: the judge's verdicts CANNOT BE WRITTEN to {self._path} ({error}): kept in memory only",
                file=sys.stderr,
            )
            self._path = None
