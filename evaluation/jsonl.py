"""Reads rows that other software wrote: JSON lines, plain or gzipped, with fields of any name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research_rl.errors import DataError
from research_rl.methods.base import Method
from research_rl.recordings import lines_of
from research_rl.types import Trajectory

_CHOOSE = "Options that end in -field choose another field"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines (.gz too).

    Raises:
        DataError: the file is missing, empty, or a line is not a JSON object; the message names the line.
    """
    empty = True
    for _, row in lines_of(path):
        if isinstance(row, DataError):
            raise row
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} holds no row")


def field(row: dict[str, Any], name: str, source: Path, number: int) -> Any:
    """Return a field of row `number` (from 1).

    Raises:
        DataError: the row has no such field.
    """
    if name not in row:
        raise DataError(f"{source}, row {number}: no field {name!r}; it has: {', '.join(row)}. {_CHOOSE}")
    return row[name]


def text_field(row: dict[str, Any], name: str, source: Path, number: int) -> str:
    """Return a field that must be a text; a number is converted to text.

    Raises:
        DataError: it is missing, or not a text.
    """
    text = _text(field(row, name, source, number))
    if text is None:
        raise DataError(f"{source}, row {number}: {name} must be a text, got {row[name]!r:.80}. {_CHOOSE}")
    return text


def golden_field(row: dict[str, Any], name: str, source: Path, number: int) -> list[str]:
    """Return the golden answers of a field that holds a text or a list of texts.

    Raises:
        DataError: it is missing, or neither.
    """
    golden = field(row, name, source, number)
    texts = [text for answer in (golden if isinstance(golden, list) else [golden]) if (text := _text(answer)) is not None]
    if not texts or (isinstance(golden, list) and len(texts) < len(golden)):
        raise DataError(f"{source}, row {number}: {name} must be a text or a list of texts, got {golden!r:.80}. {_CHOOSE}")
    return texts


def trajectory_field(row: dict[str, Any], name: str, source: Path, number: int, method: Method) -> Trajectory:
    """Return the trajectory that a method reads from a recorded response: a text, or a list of messages in OpenAI's format.

    Raises:
        DataError: it is missing, neither, or the conversation is malformed; the message names the row.
    """
    found = field(row, name, source, number)
    if not (isinstance(found, list) and found):
        return method.read(text_field(row, name, source, number))
    try:
        return method.read_messages(found)
    except DataError as error:
        raise DataError(f"{source}, row {number}: {name}: {error}") from None


def _text(value: Any) -> str | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None
