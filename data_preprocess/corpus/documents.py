"""What a line of a dump says: a document with id, title, and text or sentences. Add a format by a function and a line in `FORMATS`.

| format | line | units |
|---|---|---|
| kilt | a page of KILT's knowledge source (Petroni et al., 2021) | pages |
| hotpotqa | an abstract of HotpotQA's dump: `title`, `text` (sentences; a list of lists in the full articles) | abstracts |
| wikiextractor | `id`, `title`, `text`, as `wikiextractor --json` writes it | pages |
| dpr | id, text, title between tabs (psgs_w100.tsv), with or without quotes | passages already |
| flashrag | `id` and `contents`, or `id`, `title`, `text` | passages already |
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rag_serving import IndexingError
from rag_serving.indexing.formats import kilt_page, passage
from research_rl.errors import missing_extra

try:
    import orjson
except ModuleNotFoundError as error:
    raise missing_extra("orjson", "data") from error


@dataclass(frozen=True)
class Document:
    """A page, an abstract or a passage. `sentences` is empty where the dump does not cut them; `text` is then the text."""

    id: str
    title: str
    text: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """How a dump's lines are read. `cut`: documents are longer than a passage and are cut by default."""

    read: Callable[[bytes], Document | None]  # None: a line that is no document (a header)
    cut: bool
    names: tuple[str, ...]  # endings of the files taken from a folder or a tar archive; "" is every file


def kilt(line: bytes) -> Document:
    """Read one page."""
    return Document(*kilt_page(orjson.loads(line), "KILT page"))


def hotpotqa(line: bytes) -> Document:
    """Read one abstract, or one article of the full dump (its first paragraph repeats the title)."""
    row = orjson.loads(line)
    title, text = _title(row), row["text"]
    if text and isinstance(text[0], list):
        paragraphs = text[1:] if "".join(text[0]).strip() == title else text
        text = [sentence for paragraph in paragraphs for sentence in paragraph]
    sentences = tuple(clean for sentence in text if (clean := sentence.strip()))
    return Document(str(row["id"]), title, " ".join(sentences), sentences)


def wikiextractor(line: bytes) -> Document:
    """Read one page; some versions repeat the title as the text's first line."""
    row = orjson.loads(line)
    title, text = _title(row), row["text"]
    first, _, rest = text.partition("\n")
    return Document(str(row["id"]), title, rest if first.strip() == title else text)


def dpr(line: bytes) -> Document | None:
    """Read one passage of a table."""
    fields = next(csv.reader([line.decode().rstrip("\r\n")], delimiter="\t", strict=True))
    if fields == ["id", "text", "title"]:
        return None
    if len(fields) != 3:
        raise ValueError(f"expected id, text and title between tabs, got {len(fields)} fields")
    return Document(fields[0], fields[2], fields[1])


def flashrag(line: bytes) -> Document:
    """Read one passage; of `contents` the first line is the title."""
    row = passage(orjson.loads(line), "passage")
    title, newline, text = row["contents"].partition("\n")
    return Document(row["id"], title if newline else "", text if newline else title)


def _title(row: dict[str, Any]) -> str:
    title = row["title"]
    if not isinstance(title, str):
        raise ValueError(f"title must be a text, got {title!r}")
    return title.strip()


FORMATS = {
    "kilt": Format(kilt, True, (".json", ".jsonl")),
    "hotpotqa": Format(hotpotqa, True, ("",)),
    "wikiextractor": Format(wikiextractor, True, ("",)),
    "dpr": Format(dpr, False, (".tsv",)),
    "flashrag": Format(flashrag, False, (".jsonl",)),
}
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, csv.Error, IndexingError)  # what a bad line raises
