"""Growing files of records: JSON lines while they are written, compressed once they are closed, and read as one table in any form.

A part `NAME` is `NAME.jsonl`, `NAME.jsonl.gz` or, of trajectories, `NAME.parquet` (schema: `schema`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, cast

from research_rl.errors import missing_extra
from research_rl.files import write_atomically

FORMS = (".jsonl", ".jsonl.gz", ".parquet")  # in the order of a part's life: while one is replaced by the next, both are there
BATCH = 256  # records
_SHAPES = {"golden_answers": list, "metrics": dict, "turns": list}
_TURN = {"text", "action", "observation", "passages", "tokens"}
_ACTION = {"kind", "query", "text", "reason"}
_SEVERAL = {"passages": {"id", "score"}, "tokens": {"text", "logprob"}}
Record = dict[str, Any]


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "pyarrow", "view") from error
    return pa


@cache
def schema() -> Any:
    """Return the Arrow schema of closed parts. `other` is JSON: the fields of a record that have no column, and those that are null.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa = _arrow()
    text, number = pa.string(), pa.float64()
    action = pa.struct([(name, text) for name in ("kind", "query", "text", "reason")])
    turn = pa.struct(
        [
            ("text", text),
            ("action", action),
            ("observation", text),
            ("passages", pa.list_(pa.struct([("id", text), ("score", number)]))),
            ("tokens", pa.list_(pa.struct([("text", text), ("logprob", number)]))),
        ]
    )
    names = ("split", "type", "stage", "uid", "data_source", "question")
    return pa.schema(
        [
            *[("attempt", number), ("time", number), ("step", pa.int64()), ("validate", pa.bool_())],
            *[(name, text) for name in names],
            *[("golden_answers", pa.list_(text)), ("answer", text), ("stop_reason", text), ("ended_with_eos", pa.bool_())],
            *[("metrics", pa.map_(text, number)), ("turns", pa.list_(turn)), ("other", text)],
        ]
    )


def parts(directory: Path) -> set[str]:
    """Return the names of the parts in a directory; none if it is not there."""
    found = directory.glob("[!.]*") if directory.is_dir() else ()
    return {path.name.removesuffix(form) for path in found for form in FORMS if path.name.endswith(form)}


@dataclass
class Part:
    """One part, and how far it has been read."""

    directory: Path
    name: str
    bytes: int = 0  # of the JSON lines, uncompressed
    records: int = 0
    damaged: int = 0  # whole lines that hold no record; they are left out
    finished: bool = False  # read to the end of a closed form, which does not grow

    def batches(self) -> Iterator[list[Record]]:
        """Yield the records that have been added since the last call, each once. A last line without an end is still being written."""
        for form, read in zip(FORMS, (self._plain, self._gzip, self._parquet), strict=True):
            if self.finished:
                return
            try:
                yield from read(self.directory / f"{self.name}{form}")
                return
            except FileNotFoundError:  # it has been closed and has the next form
                continue

    def _plain(self, path: Path) -> Iterator[list[Record]]:
        with path.open("rb") as file:
            yield from self._lines(file)

    def _gzip(self, path: Path) -> Iterator[list[Record]]:
        with gzip.open(path, "rb") as file:
            yield from self._lines(cast(IO[bytes], file))
        self.finished = True

    def _lines(self, file: IO[bytes]) -> Iterator[list[Record]]:
        file.seek(self.bytes)
        # ends for good at a half line, which later writes complete
        whole = takewhile(lambda line: line.endswith(b"\n"), file)
        while lines := list(islice(whole, BATCH)):
            records = [record for line in lines if (record := _record(line)) is not None]
            self.bytes += sum(map(len, lines))
            self.records += len(records)
            self.damaged += len(lines) - len(records)
            yield records

    def _parquet(self, path: Path) -> Iterator[list[Record]]:
        for records in from_parquet(path, self.records):
            self.records += len(records)
            yield records
        self.finished = True


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def to_parquet(path: Path) -> None:
    """Replace a closed `NAME.jsonl` of trajectories by `NAME.parquet` (zstd), which reads the same. Needs the memory of one batch.

    Raises:
        ValueError: a record does not fit the schema, or a line is damaged; the file stays as it is.
        MissingExtraError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    pa, name = _arrow(), path.name.removesuffix(FORMS[0])

    def write(target: Path) -> None:
        part = Part(path.parent, name)
        with pa.parquet.ParquetWriter(target, schema(), compression="zstd") as writer:
            for records in part.batches():
                writer.write_batch(pa.RecordBatch.from_pylist([_row(record) for record in records], schema=schema()))
        if part.damaged or part.bytes != path.stat().st_size:
            raise ValueError("it has damaged lines")

    try:
        write_atomically(path.with_name(f"{name}{FORMS[2]}"), write)
    except (TypeError, pa.ArrowException) as error:
        raise ValueError(f"a record does not fit the schema of parquet files: {error}") from error
    path.unlink()


def _row(record: Mapping[str, Any]) -> Record:
    columns = set(schema().names) - {"other"}
    fits = {
        name: name in columns and value is not None and isinstance(value, _SHAPES.get(name, object))
        for name, value in record.items()
    }
    fits["turns"] = fits.get("turns", False) and all(map(_fits, record["turns"]))
    row = {name: value for name, value in record.items() if fits[name]}
    other = {name: value for name, value in record.items() if not fits[name]}
    if "metrics" in row:
        row["metrics"] = list(row["metrics"].items())
    return {**row, "other": json.dumps(other) if other else None}


def _fits(turn: Any) -> bool:
    """Return whether a turn is read back unchanged: fields that are null are dropped, and fields without a column would be lost."""
    if not (isinstance(turn, dict) and _known(turn, _TURN) and _known(turn.get("action", {}), _ACTION)):
        return False
    several = [(turn.get(key, []), names) for key, names in _SEVERAL.items()]
    return all(
        isinstance(found, list) and all(isinstance(one, dict) and set(one) == names for one in found)
        for found, names in several
    )


def _known(found: Any, names: Iterable[str]) -> bool:
    return isinstance(found, dict) and set(found) <= set(names) and None not in found.values()


def from_parquet(path: Path, skip: int = 0) -> Iterator[list[Record]]:
    """Yield the records of a closed part after the first `skip`, in batches.

    Raises:
        MissingExtraError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
    """
    pa = _arrow()
    with path.open("rb") as source, pa.parquet.ParquetFile(source) as file:
        for batch in file.iter_batches(BATCH):
            records = [_from_row(row) for row in batch.slice(min(skip, len(batch))).to_pylist()]
            skip = max(0, skip - len(batch))
            if records:
                yield records


def _from_row(row: Record) -> Record:
    record = _without_null(row)
    other = json.loads(record.pop("other", "{}"))
    if "metrics" in record:
        record["metrics"] = dict(record["metrics"])
    for turn in record.get("turns", ()):
        if "action" in turn:
            turn["action"] = _without_null(turn["action"])
    if "turns" in record:
        record["turns"] = [_without_null(turn) for turn in record["turns"]]
    return {**record, **other}


def _without_null(row: Mapping[str, Any]) -> Record:
    return {name: value for name, value in row.items() if value is not None}
