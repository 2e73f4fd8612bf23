"""An index whose maker may mean harm: links, pipes, headers and JSON that are refused before anything is read."""

from __future__ import annotations

import errno
import json
import os
import socket

import numpy as np
import pytest

from rag_serving import IndexingError
from rag_serving.indexing.manifest import MANIFEST, check, is_index, read_manifest
from rag_serving.reading import MOST_JSON, mapped, small_json

EMPTY = {"files": {}, "engines": {}}


@pytest.fixture
def index(tmp_path):
    (tmp_path / "i" / "bm25").mkdir(parents=True)
    (tmp_path / "i" / "corpus.jsonl").write_text("{}\n")
    (tmp_path / "secret").write_text("root:x:0:0\n")
    return tmp_path / "i"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("passages.jsonl", "../secret"),
        ("passages.jsonl", "/etc/hostname"),
        ("bm25/indptr.csc.index.npy", "../../secret"),
        ("dense", "/etc"),
        ("passages.jsonl", "../nothing"),
        ("passages.jsonl", "/dev/zero"),
        ("passages.jsonl", "bm25/../../secret"),
    ],
)
def test_a_link_that_leads_out_of_an_index_is_refused(index, name, target):
    (index / name).symlink_to(target)
    with pytest.raises(IndexingError, match=f"{name} is a link to .*, outside of the index; nothing is read.*cp -rL"):
        check(index, EMPTY, "never")


def test_a_link_by_way_of_another_one_is_followed_to_its_end(index):
    (index / "bm25" / "up").symlink_to("..")
    check(index, EMPTY, "never")
    (index / "passages.jsonl").symlink_to("bm25/up/../secret")
    with pytest.raises(IndexingError, match="outside of the index"):
        check(index, EMPTY, "never")


def test_links_inside_of_an_index_and_an_index_that_is_a_link_are_read(index):
    (index / "passages.jsonl").symlink_to("corpus.jsonl")
    (index / "itself").symlink_to("itself")
    index.with_name("link").symlink_to("i")
    check(index.with_name("link"), EMPTY, "never")


@pytest.mark.parametrize("folder", ["", "wiki", "indexes/wiki"])
def test_a_snapshot_in_hugging_faces_cache_is_read_and_leads_no_further_than_its_repository(index, tmp_path, folder):
    repository = tmp_path / "repository"
    snapshot, blobs = repository / "snapshots" / "revision" / folder, repository / "blobs"
    snapshot.parent.mkdir(parents=True)
    index.rename(snapshot)
    blobs.mkdir()
    (snapshot / "corpus.jsonl").rename(blobs / "5f3c")
    (snapshot / "corpus.jsonl").symlink_to(os.path.relpath(blobs / "5f3c", snapshot))
    check(snapshot, EMPTY, "never")
    (repository / "secret").write_text("x")
    (snapshot / "passages.jsonl").symlink_to(os.path.relpath(repository / "secret", snapshot))
    with pytest.raises(IndexingError, match="outside of the index"):
        check(snapshot, EMPTY, "never")


@pytest.mark.parametrize("readable", [True, False])
def test_a_folder_that_cannot_be_listed_is_refused_if_what_is_in_it_can_be_read_all_the_same(index, monkeypatch, readable):
    hidden = os.path.realpath(index / "bm25")
    scandir, access = os.scandir, os.access

    def unlisted(folder):
        if os.fspath(folder) == hidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), hidden)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", unlisted)
    monkeypatch.setattr(os, "access", lambda path, mode: readable if path == hidden else access(path, mode))
    if readable:
        with pytest.raises(IndexingError, match=r"bm25 cannot be listed \(.*chmod u\+r"):
            check(index, EMPTY, "never")
    else:  # a volume's lost+found
        check(index, EMPTY, "never")


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe"])
def test_what_is_neither_file_nor_directory_is_refused_and_not_waited_for(index, kind, monkeypatch):
    monkeypatch.chdir(index / "bm25")  # the name of a socket is short
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")
    else:
        os.mkfifo("odd")
    if kind == "link to a pipe":
        (index / "another").symlink_to("bm25/odd")
    with pytest.raises(IndexingError, match="is neither a file nor a directory; nothing is read"):
        check(index, EMPTY, "never")


def test_a_manifest_that_is_a_pipe_too_large_or_too_deep_is_refused(index):
    for make, told in (
        (os.mkfifo, "is no regular file"),
        (lambda path: (path.touch(), os.truncate(path, MOST_JSON + 1)), "bytes, and 16777216 are the most"),
        (lambda path: path.write_text("[" * 100_000), "nests lists and objects too deeply"),
    ):
        make(index / MANIFEST)
        with pytest.raises(IndexingError, match=told):
            read_manifest(index)
        assert not is_index(index)
        (index / MANIFEST).unlink()


def test_json_of_the_largest_size_is_read(tmp_path):
    (tmp_path / "j").write_text(json.dumps(["x"]).ljust(MOST_JSON))
    assert small_json(tmp_path / "j") == ["x"]


def test_arrays_are_mapped_and_neither_unpickled_nor_unpacked(tmp_path):
    np.save(tmp_path / "good.npy", np.arange(5))
    assert mapped(tmp_path / "good.npy").tolist() == [0, 1, 2, 3, 4]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "zip.npz", np.arange(5))
    with (tmp_path / "long.npy").open("wb") as file:
        np.lib.format.write_array(file, np.arange(5), version=(2, 0))
    (tmp_path / "short.npy").write_bytes(b"\x93NUM")
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    for name, told in [
        ("objects.npy", "Python objects"), ("zip.npz", "magic"), ("long.npy", "version 2.0 instead of 1.0"), ("short.npy", "EOF"),
        ("pickle.npy", "magic|EOF"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=told):
            mapped(tmp_path / name)
