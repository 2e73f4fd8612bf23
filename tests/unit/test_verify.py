"""Damaged indexes: found before compiled code reads beyond an array, while they are served, and by a command."""

from __future__ import annotations

import json
import shutil
import time

import httpx
import numpy as np
import pytest

from rag_serving import IndexingError
from rag_serving.cli import main
from rag_serving.indexing import build_index, manifest, verify
from rag_serving.indexing.structure import _BLOCK, _BLOCKS, _blocks
from rag_serving.indexing.synthetic import synthetic
from rag_serving.retrievers import load_index
from rag_serving.settings import Settings


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    with (folder / "c.jsonl").open("w") as file:
        for _, row in zip(range(300), synthetic(12), strict=False):
            file.write(json.dumps(row) + "\n")
    build_index(folder / "c.jsonl", folder / "i")
    return folder / "i"


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "i")


def edit(path, change):
    """Change an array in its file, which keeps its size."""
    array = np.load(path, mmap_mode="r+")
    change(array)
    array.flush()


def beyond(array):
    array[len(array) // 2] = 300


def negative(array):
    array[-1] = -1


def falls(array):
    array[5], array[6] = array[6] + 1, array[5]


def longer(array):
    array[-1] += 1


def no_number(array):
    array[3] = np.nan


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bm25/indices.csc.index.npy", beyond, "names passages beyond the 300"),
        ("bm25/indices.csc.index.npy", negative, "names passages beyond the 300"),
        ("bm25/indptr.csc.index.npy", falls, "it falls"),
        ("bm25/indptr.csc.index.npy", longer, "but there are"),
        ("bm25/data.csc.index.npy", no_number, "no numbers"),
        ("corpus.offsets.npy", falls, "does not rise"),
        ("corpus.offsets.npy", longer, "corpus.jsonl has"),
    ],
)
@pytest.mark.parametrize("verified", ["never", "auto"])
def test_damage_that_hashes_would_find_is_found_without_them(copy, monkeypatch, name, change, says, verified):
    monkeypatch.setattr(manifest, "_HASHED_BY_DEFAULT", 0)
    edit(copy / name, change)
    with pytest.raises(IndexingError, match=f"{name} is damaged: .*{says}.*build the index again"):
        load_index(copy, verify=verified)


@pytest.mark.parametrize(("row", "which"), [(0, "first"), (-1, "last")])
def test_a_first_or_last_line_that_is_no_passage_is_found(copy, row, which):
    lines = (copy / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    lines[row] = b"x" + lines[row][1:]
    (copy / "corpus.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(IndexingError, match=f"its {which} line is no passage"):
        load_index(copy, verify="never")


def test_an_array_of_another_type_or_shape_is_found(copy):
    path = copy / "bm25" / "indptr.csc.index.npy"
    data = path.read_bytes()
    for old, new in ((b"'<i", b"'<f"), (b"(", b"(1,")):
        path.write_bytes(
            data.replace(old, new, 1) if len(old) == len(new) else data.replace(old, new, 1).replace(b"  ", b"", 1)
        )
        with pytest.raises(IndexingError, match="build the index again"):
            load_index(copy, verify="never")


def test_an_index_without_a_known_word_has_a_structure_too(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "contents": "the of"}\n')
    build_index(tmp_path / "c.jsonl", tmp_path / "i")
    assert load_index(tmp_path / "i", verify="never").search(["the"], 1) == [[]]
    assert main(["verify", str(tmp_path / "i")]) == 0


@pytest.mark.parametrize("length", [0, 1, _BLOCK - 1, _BLOCK, _BLOCK + 1, 5 * _BLOCK + 7, 3 * _BLOCKS * _BLOCK])
def test_sampled_blocks_have_both_ends_and_all_of_a_short_array(length):
    seen = np.concatenate([np.empty(0, int), *_blocks(np.arange(length))])
    assert length == 0 or {0, length - 1} <= set(seen.tolist())
    assert length > _BLOCKS * _BLOCK or set(seen.tolist()) == set(range(length))


def damage(directory):
    """Change a word in the middle of the corpus: no structure tells it."""
    path = directory / "corpus.jsonl"
    data = bytearray(path.read_bytes())
    middle = data.index(b"contents", len(data) // 2) + 13
    data[middle] = data[middle] ^ 1
    path.write_bytes(data)


def test_a_large_index_is_hashed_while_it_is_served_and_damage_ends_readiness_not_service(copy, monkeypatch, caplog):
    from fastapi.testclient import TestClient

    from rag_serving.app import create_app

    monkeypatch.setattr(manifest, "_HASHED_BY_DEFAULT", 0)
    caplog.set_level("INFO", "rag_serving")

    def wait(client, what):
        for _ in range(2400):
            if what(client):
                return True
            time.sleep(0.05)
        return False

    with TestClient(create_app(Settings(index=copy, retriever="random"))) as client:
        assert wait(client, lambda c: c.get("/readyz").status_code == 200)
        assert wait(client, lambda _: "have their hashes" in caplog.text)
        damage(copy)
        client.app.state.reload().result(120)
        assert wait(client, lambda c: c.get("/readyz").status_code == 503)
        assert "corpus.jsonl is not the file" in client.get("/readyz").json()["stage"]
        assert client.get("/health").json()["status"] == "failed"
        assert 'rag_index_damaged{index="default"} 1.0' in client.get("/metrics").text
        assert client.post("/search", json={"query": "any"}).status_code == httpx.codes.OK
        assert "the index that is served is damaged" in caplog.text


def test_hashes_are_of_the_files_that_are_served_whatever_takes_their_place(copy):
    hashing, found = verify.Hashing(copy, manifest.read_manifest(copy)), []
    copy.rename(copy.with_name("old"))
    shutil.copytree(copy.with_name("old"), copy)
    damage(copy)
    hashing._run(found.append)
    assert not found


def test_verify_tells_what_is_right_and_ends_with_1_where_something_is_wrong(copy, capsys, monkeypatch):
    assert main(["verify", str(copy)]) == 0
    told = capsys.readouterr().out
    assert "files have the hashes" in told
    assert "bm25 finds 32 of 32 sampled passages by their own words" in told
    with monkeypatch.context() as patch:
        from rag_serving.retrievers.bm25 import BM25

        patch.setattr(BM25, "search", lambda self, queries, k: [[] for _ in queries])
        assert main(["verify", str(copy)]) == 1
        assert "bm25 finds 0 of 32 passages by their own words" in capsys.readouterr().err
    damage(copy)
    assert main(["verify", str(copy)]) == 1
    assert (
        "corpus.jsonl is not the file this index was built with (its hash differs); build the index again"
        in capsys.readouterr().err
    )
    assert main(["verify", str(copy / "nothing")]) == 1
