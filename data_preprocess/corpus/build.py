"""``python -m data_preprocess corpus``: a dump to passages, in blocks, over all cores; every block is the same whenever it is made.

Finished blocks are appended in order to `.OUT.part`; `.OUT.journal.json` says how far it is flushed to disk. Run again, the command cuts
the file back to that and goes on. At the end the file is renamed and `OUT.manifest.json` written.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_preprocess.corpus.blocks import Block, blocks_of, files_of
from data_preprocess.corpus.cutting import Cutting, cutter
from data_preprocess.corpus.documents import FORMATS, MALFORMED, Document, orjson
from data_preprocess.corpus.pool import in_order, progress_in_bytes
from research_rl.errors import ConfigError, DataError
from research_rl.files import sha256, write_text

JOURNAL_S = 5.0  # seconds of work that a kill may lose
_cut: Callable[[Document], Iterator[str]]


@dataclass
class Passages:
    """What a block gave: JSON lines of passages, and what was counted."""

    data: bytes = b""
    lines: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)  # line within the block (from 1), reason


@dataclass
class Journal:
    """How far a build is on disk: blocks, bytes of the two files, and what was counted."""

    settings: dict[str, Any]
    blocks: int = 0
    bytes: int = 0
    dropped_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of the file being read
    seconds: float = 0.0


def passages_of(block: Block, format: str, cutting: Cutting) -> Passages:
    """Return a block's passages: ``{"id": "document-number", "contents": "title\\ntext"}``; a document kept whole keeps its id."""
    read, done, keep = FORMATS[format].read, Passages(), cutting.unit == "keep"
    lines = block.lines()
    done.lines = len(lines)
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = read(line)
            if document is None:
                continue
            pieces = list(_cut(document))
        except MALFORMED as error:
            done.bad.append((number, f"{type(error).__name__}: {error}"[:300]))
            continue
        done.counts["documents"] += 1
        done.counts["passages"] += len(pieces)
        if not pieces:
            done.counts["documents without text"] += 1
        head = f"{document.title}\n" if document.title else ""
        for index, piece in enumerate(pieces):
            out.append(orjson.dumps({"id": document.id if keep else f"{document.id}-{index}", "contents": head + piece}))
    done.data = b"\n".join([*out, b""]) if out else b""
    return done


def _start_worker(cutting: Cutting) -> None:
    global _cut  # one per process
    _cut = cutter(cutting)


def build(
    source: Path, out: Path, format: str, cutting: Cutting, workers: int = 0, strict: bool = False, fresh: bool = False
) -> dict[str, Any]:
    """Make the passages and return the manifest. `workers` 0: one per core.

    Raises:
        ConfigError: format or cutting is unknown, before anything is read.
        DataError: there is no dump; it breaks off; other settings were begun with; a line is malformed, and `strict`.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose one of: {', '.join(FORMATS)}")
    cutting.check()
    cutter(cutting)  # fails here if a package is missing: in a worker the message would be lost
    files = files_of(source, FORMATS[format].names)
    sizes = {str(path): path.stat().st_size for path in files}
    part, dropped, saved = (out.with_name(f".{out.name}{end}") for end in (".part", ".dropped.part", ".journal.json"))
    settings = {"format": format, "cutting": asdict(cutting), "files": sizes}
    journal = _journal(saved, settings, fresh or not part.is_file())
    hashes: dict[str, str] = {}
    hashing = threading.Thread(target=_hash_all, args=(files, hashes), daemon=True)  # hashlib releases Python's lock
    hashing.start()
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() - journal.seconds
    with part.open("ab") as passages, dropped.open("ab") as bad, progress_in_bytes(sum(sizes.values())) as progress:
        passages.truncate(journal.bytes)
        bad.truncate(journal.dropped_bytes)

        def save() -> None:
            for file in (passages, bad):
                file.flush()
                os.fsync(file.fileno())
            journal.bytes, journal.dropped_bytes = passages.tell(), bad.tell()
            journal.seconds = time.monotonic() - started
            write_text(saved, json.dumps(asdict(journal)))

        written = time.monotonic()
        blocks = _skipping(blocks_of(source, FORMATS[format].names), journal.blocks, progress)
        for block, done in in_order(blocks, passages_of, (format, cutting), workers, _start_worker, (cutting,)):
            path = block.name
            before = journal.lines.get(path, 0)
            for number, reason in done.bad:
                where = f"{path}, line {before + number}"
                if strict:
                    raise DataError(f"{where}: malformed: {reason}")
                bad.write(orjson.dumps({"where": where, "reason": reason}) + b"\n")
            passages.write(done.data)
            journal.blocks += 1
            journal.lines = {path: before + done.lines}
            journal.counts = dict(Counter(journal.counts) + done.counts + Counter({"malformed lines": len(done.bad)}))
            progress.update(block.read)
            if time.monotonic() - written > JOURNAL_S:
                save()
                written = time.monotonic()
        save()
    return _finish(out, part, dropped, saved, journal, hashing, hashes)


def _journal(saved: Path, settings: dict[str, Any], fresh: bool) -> Journal:
    if fresh or not saved.is_file():
        saved.unlink(missing_ok=True)
        return Journal(settings)
    journal = Journal(**json.loads(saved.read_text(encoding="utf-8")))
    if journal.settings != settings:
        changed = [name for name in settings if settings[name] != journal.settings.get(name)]
        raise DataError(
            f"{saved} belongs to a build with other {' and '.join(changed)}: pass --fresh to begin again, or another --out"
        )
    return journal


def _skipping(blocks: Iterator[Block], skip: int, progress: Any) -> Iterator[Block]:
    for number, block in enumerate(blocks):
        if number < skip:
            progress.update(block.read)
        else:
            yield block


def _finish(
    out: Path, part: Path, dropped: Path, saved: Path, journal: Journal, hashing: threading.Thread, hashes: dict[str, str]
) -> dict[str, Any]:
    counts = {"documents": 0, "passages": 0, **journal.counts}
    bad = out.with_name(f"{out.name}.dropped.jsonl")
    if not counts["passages"]:
        first = dropped.read_text(encoding="utf-8").split("\n", 1)[0]
        for path in (part, dropped, saved):
            path.unlink(missing_ok=True)
        raise DataError(
            f"no passage came of {', '.join(journal.settings['files'])} as {journal.settings['format']}: {first or 'empty'}"
        )
    hashing.join()
    manifest = {
        **{name: journal.settings[name] for name in ("format", "cutting")},
        "inputs": [
            {"file": Path(name).name, "bytes": size, "sha256": hashes.get(name)}
            for name, size in journal.settings["files"].items()
        ],
        **counts,
        "output": {"file": out.name, "bytes": journal.bytes, "sha256": sha256(part)},
        "seconds": round(journal.seconds, 1),
    }
    if journal.dropped_bytes:
        dropped.replace(bad)
    else:
        dropped.unlink()
        bad.unlink(missing_ok=True)
    part.replace(out)
    write_text(out.with_name(f"{out.name}.manifest.json"), json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    saved.unlink(missing_ok=True)
    for stale in out.parent.glob(f".{saved.name}.part-*"):  # half-written journals of a killed run
        stale.unlink()
    return manifest


def _hash_all(files: list[Path], hashes: dict[str, str]) -> None:
    for path in files:
        hashes[str(path)] = sha256(path)
