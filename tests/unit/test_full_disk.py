"""A disk that fills at whatever write of a build: what was finished stays, and the same command does the rest."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from rag_serving import IndexingError
from rag_serving.indexing import DenseOptions, add, add_passages, build, build_index, dense, read_manifest, stages
from rag_serving.indexing.manifest import check, write_json

NOTES = {"corpus.done.json": "write_corpus", "bm25.done.json": "build_bm25", "dense.done.json": "build_dense"}


class Disk:
    """Counts what is written; the write `full_at` (from 0) and all after it find no room."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full_at, self.written = -1, 0
        for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "replace"), (np, "save")):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))
        patch.setattr(os, "fsync", lambda _: self._write())
        opened, written = Path.open, faiss.write_index

        def open_(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if mode[0] != "r" or "+" in mode:
                self._write()
            return opened(path, mode, *arguments, **named)

        def write_index(*arguments: Any) -> None:
            try:
                self._write()
            except OSError as error:  # as FAISS tells it
                raise RuntimeError(str(error)) from None
            written(*arguments)

        patch.setattr(Path, "open", open_)
        patch.setattr(faiss, "write_index", write_index)

    def _write(self) -> None:
        self.written += 1
        if 0 <= self.full_at < self.written:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._write()
            return work(*arguments, **named)

        return counted


class Encoder:
    """Makes vectors of texts without a model, and counts the shards."""

    dimension, query_prefix, passage_prefix = 8, "", ""

    def __init__(self) -> None:
        self.shards = 0

    def passages(self, texts: list[str]) -> np.ndarray:
        self.shards += 1
        return np.array([np.frombuffer(text.encode()[:8], np.uint8) for text in texts], np.float32)


def counting(patch: pytest.MonkeyPatch, module: Any, *names: str) -> Counter[str]:
    """Count how often each stage was begun."""
    begun: Counter[str] = Counter()
    for name in names:
        work = getattr(module, name)
        patch.setattr(module, name, lambda *given, name=name, work=work, **named: begun.update([name]) or work(*given, **named))
    return begun


def corpus_of(path: Path, passages: int = 5, words: int = 3) -> Path:
    rows = [{"id": f"{path.stem}{i}", "contents": f"passage {i} " + "words and words " * words} for i in range(passages)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(index: Path) -> dict[str, dict[str, Any]]:
    """Return what the index holds, and check that it is just that."""
    manifest = read_manifest(index)
    check(index, manifest, "always")
    there = {path.relative_to(index).as_posix() for path in index.rglob("*") if path.is_file()}
    assert there == {*manifest["files"], "manifest.json"}
    return manifest["files"]


def test_whichever_write_fails_finished_stages_stay_and_the_same_command_goes_on(tmp_path, monkeypatch):
    corpus, options, encoder = corpus_of(tmp_path / "c.jsonl"), DenseOptions("encoder", shard=2), Encoder()
    monkeypatch.setattr(dense, "encoder_of", lambda *_: encoder)
    begun = counting(monkeypatch, build, *NOTES.values())
    disk = Disk(monkeypatch)

    def make(name: str) -> None:
        build_index(corpus, tmp_path / name, engines=("bm25", "dense"), dense=options, processes=1)

    make("whole")
    writes, whole = disk.written, files(tmp_path / "whole")
    assert writes > 30
    for full_at in range(writes):
        name = f"i{full_at}"
        building = tmp_path / f".{name}.building"
        disk.full_at, disk.written = full_at, 0
        with pytest.raises((OSError, IndexingError), match="No space left"):
            make(name)
        disk.full_at = -1
        finished = {stage for note, stage in NOTES.items() if (building / note).exists()}
        shards = len(list((building / "vectors").glob("*.npy")))
        assert not (tmp_path / name).exists()
        begun.clear()
        encoder.shards = 0
        make(name)
        assert set(begun) == set(NOTES.values()) - finished
        assert encoder.shards == (0 if "build_dense" in finished else 3 - shards)
        assert files(tmp_path / name) == whole
        assert not building.exists()
    assert finished == set(NOTES.values())  # the last writes are the manifest's


def test_a_full_disk_while_passages_are_added_costs_no_finished_stage_either(tmp_path, monkeypatch):
    build_index(corpus_of(tmp_path / "c.jsonl"), tmp_path / "i", processes=1)
    more = corpus_of(tmp_path / "more.jsonl", 2)

    def full(path: Path, value: Any) -> None:
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            add_passages(more, tmp_path / "i", processes=1)
    assert read_manifest(tmp_path / "i")["passages"] == 5
    begun = counting(monkeypatch, add, "write_corpus", "build_bm25")
    assert add_passages(more, tmp_path / "i", processes=1)["passages"] == 7
    assert not begun
    files(tmp_path / "i")


def test_a_request_that_cannot_be_read_now_costs_no_finished_stage(tmp_path, monkeypatch):
    corpus, read = corpus_of(tmp_path / "c.jsonl"), Path.read_text

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_bm25", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_index(corpus, tmp_path / "i", processes=1)

    def fails(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "request.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        with pytest.raises(OSError, match="Input/output"):
            build_index(corpus, tmp_path / "i", processes=1)
    assert (tmp_path / ".i.building" / "corpus.done.json").is_file()


@pytest.fixture
def disk_of(tmp_path):
    """Mount a file system of as many bytes as told; told again, it grows."""
    disk, mounted = tmp_path / "disk", []
    disk.mkdir()

    def sized(size: int) -> Path:
        options = f"{'remount,' * bool(mounted)}size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
        if done.returncode and not mounted:
            pytest.skip("no file system can be mounted here")
        assert done.returncode == 0, done.stderr
        mounted.append(size)
        return disk

    yield sized
    if mounted:
        subprocess.run(["umount", disk], check=True)


def test_on_a_real_disk_that_grows_a_little_each_time_no_stage_is_finished_twice(tmp_path, disk_of, monkeypatch):
    corpus = corpus_of(tmp_path / "c.jsonl", 40, 100)
    monkeypatch.setattr(dense, "encoder_of", lambda *_: Encoder())
    finished: Counter[str] = Counter()
    for name in NOTES.values():
        work = getattr(build, name)

        def counted(*given: Any, name: str = name, work: Any = work, **named: Any) -> Any:
            told = work(*given, **named)
            finished[name] += 1
            return told

        monkeypatch.setattr(build, name, counted)
    size, failed = 16 << 10, 0
    while True:
        disk = disk_of(size)
        with contextlib.suppress(OSError, IndexingError):
            build_index(corpus, disk / "i", engines=("bm25", "dense"), dense=DenseOptions("encoder"), processes=1)
            break
        failed += 1
        assert size < 4 << 20
        size += 8 << 10
    assert failed > 5
    # a stage whose note found no room is done once more
    assert all(times <= 2 for times in finished.values())
    files(disk / "i")
