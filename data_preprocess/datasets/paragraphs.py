"""A paragraph of a question's row, and the ways in which lists of records are published."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Paragraph(NamedTuple):
    """A paragraph that comes with a question; `supporting`: the annotation names it."""

    title: str
    text: str
    supporting: bool


def records(value: Any) -> list[Any]:
    """Return a list of records: as it is (None is an empty one), from a JSON text, or from the hub's columns ``{"title": [...], …}``.

    Raises:
        ValueError: the columns are not equally long, or it is none of these.
    """
    value = json.loads(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        return [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    if not isinstance(value, list | None):
        raise ValueError(f"expected a list, or columns, got {value!r:.80}")
    return value or []


def titled(value: Any) -> list[tuple[Any, Any]]:
    """Return (title, what stands beside it) of records ``[title, X]`` or ``{"title": title, NAME: X}``, see `records`."""
    return [
        (record["title"], next(beside for name, beside in record.items() if name != "title"))
        if isinstance(record, dict)
        else (record[0], record[1])
        for record in records(value)
    ]
