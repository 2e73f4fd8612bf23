"""Corpora of many formats as one stream of passages ``{"id", "contents"}``, contents = title, newline, text.

FlashRAG's rows and those of tables may have more fields: a passage's metadata.

| format | what | recognised by |
|---|---|---|
| flashrag | JSON lines with `id` and `contents`, or `id`, `title`, `text` | .jsonl, .jsonl.gz |
| kilt | JSON lines of whole pages (`wikipedia_id`, `wikipedia_title`, `text`: paragraphs), cut into passages | first row |
| dpr | tab-separated `id`, `text`, `title` with a header (DPR's psgs_w100, R1-Searcher's KILT passages) | .tsv, .tsv.gz |
| parquet | columns `id` and `contents`, or `id`, `title`, `text` | .parquet |
| folder | .txt and .md files below a folder, cut into passages; id = path#number | a folder |
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rag_serving import IndexingError

FORMATS = ("flashrag", "kilt", "dpr", "parquet", "folder")
PASSAGE_WORDS = 100
Passage = dict[str, Any]
_OF_PASSAGES = frozenset({"id", "contents", "title", "text"})


def detect(path: Path) -> str:
    """Return the format of a corpus by its name, and for JSON lines by its first row.

    Raises:
        IndexingError: there is nothing at `path`, or its name tells nothing.
    """
    if path.is_dir():
        return "folder"
    if not path.is_file():
        raise IndexingError(
            f"no corpus at {path}: give a file (.jsonl, .tsv, each also .gz; .parquet) or a folder of .txt and .md files"
        )
    name = path.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        return "dpr"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".jsonl", ".json")):
        with _open(path) as lines:
            try:
                return "kilt" if "wikipedia_title" in json.loads(lines.readline()) else "flashrag"
            except (ValueError, RecursionError, TypeError, OSError, EOFError, zlib.error):
                return "flashrag"  # whose reader says what is wrong, with the line
    raise IndexingError(f"the format of {path} cannot be told from its name; pass --format, one of: {', '.join(FORMATS)}")


def read_corpus(
    path: Path, format: str | None = None, progress: Callable[[int], Any] = lambda read: None, metadata: bool = False
) -> Iterator[Passage]:
    """Yield the passages of `path` in order; `progress` is told bytes of the file as they are read.

    With `metadata`, a passage of which the corpus says more than id, title and text has a third key of this name, a dict.

    Raises:
        IndexingError: the file is missing or a row is malformed; the message names file and line.
    """
    chosen = format or detect(path)
    if chosen not in FORMATS:
        raise IndexingError(f"unknown format {chosen!r}; choose one of: {', '.join(FORMATS)}")
    if not path.exists():
        raise IndexingError(f"no corpus at {path}")
    try:
        if chosen in ("kilt", "folder"):  # the metadata of a page is not that of its passages
            yield from (_kilt if chosen == "kilt" else _folder)(path, progress)
        else:
            rows = {"flashrag": _rows, "dpr": _dpr, "parquet": _parquet}[chosen](path, progress, metadata)
            for where, row in rows:
                found = passage(row, where)
                if metadata and (more := _more(row)):
                    found["metadata"] = more
                yield found
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IndexingError(f"{path} cannot be read as UTF-8 text: {error}") from None


class _Counted(io.RawIOBase):
    """Tells `progress` what is read of a file, compressed bytes where it is compressed."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], Any]) -> None:
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]  # missing in IO[bytes]
        self._progress(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path, progress: Callable[[int], Any] = lambda read: None, newline: str | None = "\n") -> IO[str]:
    raw: Any = io.BufferedReader(_Counted(path.open("rb"), progress), 1 << 20)
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw, encoding="utf-8", newline=newline)


def passage(row: Any, where: str) -> Passage:
    """Return a row in FlashRAG's form.

    Raises:
        IndexingError: a field is missing or blank.
    """
    if not isinstance(row, dict) or row.get("id") is None or not ("contents" in row or "text" in row):
        shown = json.dumps(row, ensure_ascii=False, default=str)[:80]
        raise IndexingError(f'{where}: expected {{"id": …, "contents": …}} (or id, title, text), got {shown}')
    contents = row.get("contents")
    if contents is None:
        contents = f"{row['title']}\n{row['text']}" if row.get("title") else row["text"]
    if not isinstance(contents, str) or not contents.strip():
        raise IndexingError(f"{where}: contents must be a text that is not blank")
    return {"id": str(row["id"]), "contents": contents}


def _more(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row says beside id, title and text, itself or in an object `metadata`; null says nothing."""
    more = {name: value for name, value in row.items() if name not in _OF_PASSAGES and value is not None}
    if isinstance(inner := more.get("metadata"), dict):
        del more["metadata"]
        more |= {name: value for name, value in inner.items() if value is not None}
    return more


def _rows(path: Path, progress: Callable[[int], Any], metadata: bool = False) -> Iterator[tuple[str, Any]]:
    with _open(path, progress) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except (
                    ValueError,
                    RecursionError,
                ) as error:  # also a number of thousands of digits, and nesting without an end
                    raise IndexingError(f"{path}, line {number}: no JSON ({error}), got {line.strip()[:80]!r}") from None


def cut(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Yield a text's words in passages of at most `words`, none overlapping."""
    pieces = text.split()
    for start in range(0, len(pieces), words):
        yield " ".join(pieces[start : start + words])


def _kilt(path: Path, progress: Callable[[int], Any]) -> Iterator[Passage]:
    for where, row in _rows(path, progress):
        page, title, text = kilt_page(row, where)
        for number, piece in enumerate(cut(text)):
            yield {"id": f"{page}-{number}", "contents": f"{title}\n{piece}"}


def kilt_page(row: Any, where: str) -> tuple[str, str, str]:
    """Return (id, title, text) of a page of KILT's knowledge source, headings left out.

    Raises:
        IndexingError: a field is missing.
    """
    try:
        page, title, paragraphs = str(row["wikipedia_id"]), str(row["wikipedia_title"]), row["text"]
        # KILT marks headings and list items; its first paragraph repeats the title
        body = [str(p).replace("BULLET::::-", "").strip() for p in paragraphs if not str(p).startswith("Section::::")]
    except (KeyError, TypeError) as error:
        raise IndexingError(
            f"{where}: expected wikipedia_id, wikipedia_title and text (a list), a KILT page ({error!r})"
        ) from None
    return page, title, " ".join(body[1:] if body and body[0] == title else body)


def _dpr(path: Path, progress: Callable[[int], Any], metadata: bool) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 24)
    with _open(path, progress, newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        header = next(rows, None)
        if header is None or not {"id", "text"} <= set(header):
            raise IndexingError(f"{path}, line 1: expected the header id, text, title separated by tabs, got {header!r}")
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise IndexingError(f"{path}, line {rows.line_num}: {error}") from None
            if len(values) != len(header):
                raise IndexingError(f"{path}, line {rows.line_num}: {len(values)} fields where the header names {len(header)}")
            yield f"{path}, line {rows.line_num}", dict(zip(header, values, strict=True))


def _parquet(path: Path, progress: Callable[[int], Any], metadata: bool) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if metadata or name in _OF_PASSAGES]
        number, per_row = 0, path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
            progress(int(per_row * batch.num_rows))
    except (pa.ArrowInvalid, OSError) as error:
        raise IndexingError(f"{path} is no parquet file that can be read: {error}") from None


def _folder(path: Path, progress: Callable[[int], Any]) -> Iterator[Passage]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md") and file.is_file())
    if not files:
        raise IndexingError(f"no .txt or .md file below {path}")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise IndexingError(f"{file} cannot be read as UTF-8 text: {error}") from None
        progress(file.stat().st_size)
        first = text.lstrip().split("\n", 1)[0]
        title = first.lstrip("# ").strip() if file.suffix.lower() == ".md" and first.startswith("#") else file.stem
        for number, piece in enumerate(cut(text)):
            yield {"id": f"{file.relative_to(path).as_posix()}#{number}", "contents": f"{title}\n{piece}"}
