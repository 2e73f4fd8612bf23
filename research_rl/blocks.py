"""Blocks between a begin and an end marker. A lazy regular expression finds the same, but reads the rest of the text again at every
begin that no end follows: its time is quadratic in what a collapsed policy repeats."""

from __future__ import annotations

from collections.abc import Iterator


def blocks(text: str, begin: str, end: str) -> Iterator[tuple[int, int]]:
    """Yield where each complete block starts and stops, markers included; a begin within a block is a part of its content."""
    start = text.find(begin)
    while start >= 0 and (stop := text.find(end, start + len(begin))) >= 0:
        stop += len(end)
        yield start, stop
        start = text.find(begin, stop)


def contents(text: str, begin: str, end: str) -> list[str]:
    """Return what the complete blocks hold, without the markers."""
    return [text[start + len(begin) : stop - len(end)] for start, stop in blocks(text, begin, end)]


def without(text: str, begin: str, end: str) -> str:
    """Return the text without its complete blocks."""
    kept, last = [], 0
    for start, stop in blocks(text, begin, end):
        kept.append(text[last:start])
        last = stop
    return "".join([*kept, text[last:]])
