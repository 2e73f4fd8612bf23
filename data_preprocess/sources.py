"""Rows of a file or of a Hugging Face data set, each with the place it stands at: JSON lines, JSON arrays, CSV, TSV, parquet; .gz and .bz2.

A line that is no row is given as a `BadRow` and the rest goes on; only a JSON array that breaks off ends the reading, because nothing
after the break can be trusted.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from research_rl.errors import DataError, missing_extra

CHUNK = 1 << 20  # characters read at a time from a JSON array
LARGEST = 1 << 26  # most characters of one row of the array; a longer one is taken as broken
OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
_CONTAINER = re.compile(r'\s*\{\s*(?:"[^"]*"\s*:\s*[^\[\]{}]*,\s*)*"[Dd]ata"\s*:\s*\[')
_SPACE = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Row:
    """A row, and the file and line (or row) it stands at."""

    where: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A place where no row could be read, and the reason."""

    where: str
    reason: str


def open_text(path: Path) -> TextIO:
    """Open a text file, packed (.gz, .bz2) or not; bytes that are not UTF-8 become U+FFFD."""
    opener = OPENERS.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="")  # type: ignore[return-value]  # mode rt: text


def read_rows(
    source: str, config: str | None = None, split: str | None = None, columns: tuple[str, ...] = ()
) -> Iterator[Row | BadRow]:
    """Yield the rows of a file, or, where there is no such file, of a data set on the hub.

    `config` and `split` are the hub's; `columns` names the columns of a CSV or TSV file that has no header.

    Raises:
        DataError: there is neither; the format is unknown; a JSON array breaks off.
        MissingExtraError: the package that reads it is not installed.
    """
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{path} is a directory: give a file of it")
    if not path.is_file():
        yield from _hub(source, config, split)
        return
    kind = Path(path.name.removesuffix(path.suffix) if path.suffix in OPENERS else path.name).suffix
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with open_text(path) as file:
            yield from _text(path, file, kind, columns)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read to its end ({error}): fetch it again") from error


def _text(path: Path, file: TextIO, kind: str, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    if kind in (".csv", ".tsv"):
        yield from _csv(path, file, columns)
        return
    start = file.read(CHUNK)
    container = _CONTAINER.match(start)
    file.seek(0)
    if start.lstrip().startswith("[") or container:
        yield from _array(path, file, container.end() if container else start.index("[") + 1)
    else:
        yield from _lines(path, file)


def _lines(path: Path, file: Iterable[str]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadRow(where, f"no JSON: {error}")
            continue
        yield Row(where, fields) if isinstance(fields, dict) else BadRow(where, f"no JSON object: {line.strip()[:60]}")


def _array(path: Path, file: TextIO, start: int) -> Iterator[Row | BadRow]:
    decoder, buffer, at, line = json.JSONDecoder(), file.read(CHUNK), start, 1
    line += buffer.count("\n", 0, at)
    number = 0
    while True:
        after = _SPACE.match(buffer, at).end()  # type: ignore[union-attr]  # matches the empty text, too
        line += buffer.count("\n", at, after)
        at = after
        if buffer[at : at + 1] == "]":
            return
        try:
            fields, end = decoder.raw_decode(buffer, at)
        except RecursionError as error:
            raise DataError(f"{path}, line {line}: nested too deeply to be a row") from error
        except json.JSONDecodeError as error:
            more = file.read(max(CHUNK, len(buffer) - at)) if len(buffer) - at < LARGEST else ""
            if not more:
                raise DataError(
                    f"{path}: the JSON array is broken after row {number}, at line {line} ({error.msg}): fetch the file again"
                ) from None
            buffer, at = buffer[at:] + more, 0
            continue
        number += 1
        where = f"{path}, line {line}, row {number}"
        yield Row(where, fields) if isinstance(fields, dict) else BadRow(where, f"no JSON object: {str(fields)[:60]}")
        line += buffer.count("\n", at, end)
        at = end


def _csv(path: Path, file: TextIO, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    first = file.readline()
    file.seek(0)
    csv.field_size_limit(1 << 27)
    reader = csv.DictReader(file, columns or None, restkey="", delimiter="\t" if "\t" in first else ",")
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(where, f"no CSV: {error}")
            continue
        where = where if reader.line_num > 1 or columns else f"{path}, line 2"
        if "" in fields or None in fields.values():
            yield BadRow(where, f"{len(reader.fieldnames or ())} columns expected, got another number")
        else:
            yield Row(where, dict(fields))


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "data") from error
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", fields)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no parquet that can be read to its end ({error}): fetch it again") from error


def _hub(source: str, config: str | None, split: str | None) -> Iterator[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or Path(source).suffix in (
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".parquet",
    ):
        raise DataError(f"no file {source}")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise missing_extra("datasets", "data") from error
    try:
        rows = load_dataset(source, config, split=split)
    except Exception as error:  # the library raises many kinds, its own and the network's
        raise DataError(
            f"{source} is no file, and no data set of the hub that can be had "
            f"(config {config}, split {split}): {type(error).__name__}: {str(error)[:300]}"
        ) from error
    for number, fields in enumerate(rows, 1):
        yield Row(f"{source}[{split}], row {number}", dict(fields))  # type: ignore[call-overload]  # a mapping
