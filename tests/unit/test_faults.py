"""What the operating system refuses: told in a sentence, and no half of an index is left."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess

import pytest

from rag_serving import ServingError
from rag_serving.cache import DiskCached
from rag_serving.cli import main
from rag_serving.faults import sentence
from rag_serving.indexing import build_index
from rag_serving.retrievers import DummyRetriever


def corpus_of(path, passages=50, words=400, first="p"):
    text = " ".join(f"word{i}" for i in range(words))
    path.write_text("".join(json.dumps({"id": f"{first}{i}", "contents": f"{text} {i}"}) + "\n" for i in range(passages)))
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def refused(arguments, capsys):
    """Run a command that fails; return its one line on standard error."""
    assert main([str(argument) for argument in arguments]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("rag-serving: ")]
    return line


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("passages", [50, 150])  # the disk is full of BM25's arrays, of passages
def test_a_full_disk_is_told_and_leaves_no_index(small_disk, tmp_path, capsys, passages):
    corpus = corpus_of(tmp_path / "c.jsonl", passages)
    told = refused(["index", "--corpus", corpus, "--out", small_disk / "i", "--processes", 1], capsys)
    assert "make room there" in told
    assert "the same command goes on" in told
    assert not (small_disk / "i").exists()


def test_a_full_disk_leaves_the_index_that_is_added_to_as_it_was(small_disk, tmp_path, capsys):
    build_index(corpus_of(tmp_path / "a.jsonl", 1), small_disk / "i", processes=1)
    before = contents(small_disk / "i")
    more = corpus_of(tmp_path / "more.jsonl", first="more")
    told = refused(["index", "--add", more, "--index", small_disk / "i", "--processes", 1], capsys)
    assert "make room there" in told
    assert contents(small_disk / "i") == before


@pytest.mark.parametrize("manifest", [None, '{"name": "a browser extension"}', "[]", "{"])
def test_a_directory_that_is_no_index_is_not_replaced(tmp_path, capsys, manifest):
    (tmp_path / "data").mkdir()
    if manifest is not None:
        (tmp_path / "data" / "manifest.json").write_text(manifest)
    corpus = corpus_of(tmp_path / "data" / "c.jsonl", 2)
    told = refused(["index", "--corpus", corpus, "--out", tmp_path / "data", "--force"], capsys)
    assert "is no index (it has no manifest.json of one) and is not replaced" in told
    assert corpus.is_file()


def test_a_file_where_a_directory_should_be_is_told(tmp_path, capsys):
    corpus, file = corpus_of(tmp_path / "c.jsonl", 2), tmp_path / "file"
    file.write_text("kept")
    told = refused(["index", "--corpus", corpus, "--out", file / "i"], capsys)
    assert str(file) in told
    assert "take" in told
    assert "is a file, and an index is a directory" in refused(["index", "--corpus", corpus, "--out", file, "--force"], capsys)
    assert file.read_text() == "kept"
    assert "is no index" in refused(["verify", file], capsys)
    assert "is no index" in refused(["serve", "--index", file], capsys)


@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.EACCES, "let this user do that"), (errno.EROFS, "choose a place that can be written"), (errno.ENOSPC, "make room")],
)
@pytest.mark.parametrize(
    ("boundary", "arguments"),
    [
        ("rag_serving.indexing.stages.fcntl.flock", ["index", "--corpus", "c.jsonl", "--out", "new"]),
        ("rag_serving.indexing.stages.fcntl.flock", ["index", "--add", "c.jsonl", "--index", "i"]),
        ("rag_serving.indexing.manifest.hashlib.file_digest", ["verify", "i"]),
        ("rag_serving.server.tempfile.mkdtemp", ["serve", "--index", "i", "--port", "0", "--workers", "2"]),
        ("rag_serving.indexing.estimate.tempfile.TemporaryDirectory", ["estimate", "--corpus", "c.jsonl"]),
    ],
)
def test_every_command_tells_what_the_system_refuses(boundary, arguments, code, told, tmp_path, monkeypatch, capsys):
    build_index(corpus_of(tmp_path / "c.jsonl", 2, 5), tmp_path / "i", processes=1)
    capsys.readouterr()

    def refuse(*_, **__):
        raise OSError(code, "refused", "/some/place")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(boundary, refuse)
        line = refused(arguments, capsys)
    assert f"/some/place: refused; {told}" in line
    assert not (tmp_path / "new").exists()


def test_an_array_that_numpy_could_not_write_whole_is_a_full_disk_and_other_words_of_a_library_stay():
    assert "make room there" in sentence(OSError("1000 requested and 10 written"))
    assert sentence(OSError("x/y is no model")) == "x/y is no model"


def test_a_cache_that_cannot_be_written_stops_no_search(tmp_path, monkeypatch, caplog):
    diskcache = pytest.importorskip("diskcache")
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="give another --cache-dir"):
        DiskCached(DummyRetriever([]), tmp_path / "file" / "cache", "f")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with contextlib.closing(DiskCached(DummyRetriever([("1", "passage")]), tmp_path / "cache", "f")) as cached:
        monkeypatch.setattr(diskcache.Cache, "set", full)
        for _ in range(2):
            assert [hit.id for hit in cached.search(["passage"], 1)[0]] == ["1"]
    assert caplog.text.count("answers are not kept on disk") == 1
