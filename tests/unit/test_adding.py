"""Adding passages: the index is the one that both corpora give in one go, and until it is there the old one is."""

from __future__ import annotations

import fcntl
import json
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_serving import IndexingError
from rag_serving.cli import main
from rag_serving.indexing import BM25Options, DenseOptions, add, add_passages, bm25, build_index, read_manifest
from rag_serving.indexing.postings import LENGTHS
from rag_serving.indexing.stages import locked
from rag_serving.indexing.verify import verify
from rag_serving.lookup import Lookup
from rag_serving.retrievers import load_index
from tests.servers import minilm

words = st.lists(st.sampled_from("rome paris river rivers the of tower ruin é日本 zebra".split()), min_size=1, max_size=12)
titles = st.sampled_from(["", "Rome\n", '"Rome"\n', "Paris\n"])
contents = st.builds(lambda title, text: title + " ".join(text), titles, words)


def write(path: Path, passages, first=0):
    rows = [{"id": f"doc-{first + i}", "contents": text} for i, text in enumerate(passages)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(index: Path) -> dict[str, bytes]:
    """Return what both ways must agree in: everything but the manifest's account of it."""
    return {
        path.relative_to(index).as_posix(): path.read_bytes()
        for path in index.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@settings(max_examples=40, deadline=None)
@given(
    title_weight=st.sampled_from([1, 3]), parts=st.lists(st.lists(contents, min_size=1, max_size=6), min_size=2, max_size=4),
    k1=st.sampled_from([0.0, 0.9, 1.5]), b=st.sampled_from([0.0, 0.75, 1.0]), memory=st.sampled_from([1, 10_000]),
)  # fmt: skip
def test_an_index_that_was_added_to_is_byte_for_byte_the_one_built_in_one_go(title_weight, parts, k1, b, memory):
    with tempfile.TemporaryDirectory() as name:
        folder, options, size = Path(name), BM25Options(k1, b, title_weight=title_weight), len(parts[0])
        build_index(write(folder / "c.jsonl", parts[0]), folder / "grown", bm25=options, memory=memory, processes=1)
        for part in parts[1:]:
            add_passages(write(folder / "more.jsonl", part, size), folder / "grown", memory=memory, processes=1)
            size += len(part)
        whole = write(folder / "c.jsonl", [text for part in parts for text in part])
        told = build_index(whole, folder / "whole", bm25=options, memory=memory, processes=1)
        assert read_manifest(folder / "grown")["index_id"] == told["index_id"]
        assert files(folder / "grown") == files(folder / "whole")


@pytest.fixture
def grown(tmp_path):
    """An index of two passages, and a corpus of two more."""
    build_index(write(tmp_path / "c.jsonl", ["Rome\nrivers", "Paris\ntower"]), tmp_path / "index", processes=1)
    write(tmp_path / "more.jsonl", ["Paris\nrivers and zebras", "ruins"], 2)
    return tmp_path


def test_what_was_added_is_found_together_with_what_was_there(grown, capsys):
    assert main(["index", "--add", str(grown / "more.jsonl"), "--index", str(grown / "index"), "--processes", "1"]) == 0
    assert "files" not in json.loads(capsys.readouterr().out)
    found = load_index(grown / "index").search(["rivers", "zebras"], 5)
    assert [[hit.id for hit in hits] for hits in found] == [["doc-0", "doc-2"], ["doc-2"]]
    manifest = read_manifest(grown / "index")
    assert manifest["passages"] == 4
    assert manifest["corpus"]["added"] == [{"source": "more.jsonl", "passages": 2}]
    assert main(["verify", str(grown / "index"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["index_id"] == manifest["index_id"]
    assert told["right"] == verify(grown / "index")
    assert any("4 passages" in line for line in told["right"])
    assert Lookup(load_index(grown / "index")._corpus).titled("Paris") == [range(1, 3)]


def test_old_passages_are_not_split_into_words_again(grown, monkeypatch):
    split, kind = [], bm25.TermIds

    def watched(*arguments):
        split.append(arguments[3])
        return kind(*arguments)

    monkeypatch.setattr(bm25, "TermIds", watched)
    add_passages(grown / "more.jsonl", grown / "index", processes=1)
    assert split == [2]


@pytest.mark.parametrize("reason", ["the lengths were not kept", "several counts have one score"])
def test_what_cannot_be_read_back_is_counted_again_with_the_same_result(tmp_path, reason):
    # of one short passage, a word thousands of times: with so small a k1 its score is that of other numbers, too
    many, options = "rivers " * 3_000, BM25Options(0.001, 0.0)
    build_index(write(tmp_path / "c.jsonl", ["Rome rivers", many]), tmp_path / "index", bm25=options, processes=1)
    if reason == "the lengths were not kept":
        manifest = read_manifest(tmp_path / "index")
        del manifest["files"][f"bm25/{LENGTHS}"]
        (tmp_path / "index" / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "index" / "bm25" / LENGTHS).unlink()
    add_passages(write(tmp_path / "more.jsonl", ["zebra"], 2), tmp_path / "index", processes=1)
    build_index(write(tmp_path / "c.jsonl", ["Rome rivers", many, "zebra"]), tmp_path / "whole", bm25=options, processes=1)
    assert files(tmp_path / "index") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "new", "contents": "a"}, {"id": "doc-1", "contents": "b"}], "'doc-1' of passage 2 is in the index already"),
        ([{"id": "new", "contents": "a"}, {"id": "new", "contents": "b"}], "'new' occurs twice"),
        ([{"id": "new", "contents": " "}], "line 1: contents must be a text"),
        ([], "has no passages"),
    ],
)
def test_what_cannot_be_added_leaves_the_index_as_it_was(grown, rows, says):
    before = files(grown / "index")
    (grown / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(IndexingError, match=says):
        add_passages(grown / "more.jsonl", grown / "index", processes=1)
    assert files(grown / "index") == before
    assert sorted(path.name for path in grown.iterdir()) == ["c.jsonl", "index", "more.jsonl"]


@pytest.mark.parametrize("stage", ["write_corpus", "build_bm25", "finish"])
def test_interrupted_the_old_index_is_served_and_the_same_command_goes_on(grown, monkeypatch, stage):
    def killed(*_, **__):
        raise KeyboardInterrupt

    before = files(grown / "index")
    with monkeypatch.context() as patch:
        patch.setattr(add, stage, killed)
        with pytest.raises(KeyboardInterrupt):
            add_passages(grown / "more.jsonl", grown / "index", processes=1)
    assert files(grown / "index") == before
    assert load_index(grown / "index").size == 2
    assert add_passages(grown / "more.jsonl", grown / "index", processes=1)["passages"] == 4
    assert load_index(grown / "index").size == 4


@pytest.mark.parametrize("given", [".", "../link"])
def test_an_index_may_be_the_working_directory_or_a_link(grown, monkeypatch, given):
    (grown / "link").symlink_to("index")
    monkeypatch.chdir(grown / "index")
    assert add_passages(grown / "more.jsonl", Path(given), processes=1)["passages"] == 4
    assert load_index(grown / "link").size == 4
    assert sorted(path.name for path in grown.iterdir()) == ["c.jsonl", "index", "link", "more.jsonl"]
    assert (grown / "link").is_symlink()


def test_a_lock_whose_holder_ends_just_now_is_not_shared_with_a_third_process(grown, monkeypatch):
    flock, opened = fcntl.flock, []

    def ended(file, how):
        opened.append(file)
        if len(opened) == 1:
            (grown / ".index.building.lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", ended)
    with locked(grown / ".index.building", grown / "index"), pytest.raises(IndexingError, match="another process is building"):
        add_passages(grown / "more.jsonl", grown / "index", processes=1)
    assert len(opened) == 3


def test_vectors_are_added_to_a_flat_index_which_finds_what_one_built_in_one_go_finds(tmp_path):
    first, more = ["Rome\nThe Tiber.", "Paris\nThe Seine."], ["Vienna\nThe Danube.", "Cairo\nThe Nile."]
    dense = DenseOptions(minilm(), max_length=16)
    for name, passages in (("grown", first), ("whole", first + more)):
        build_index(write(tmp_path / "c.jsonl", passages), tmp_path / name, engines=("bm25", "dense"), dense=dense, processes=1)
    told = add_passages(write(tmp_path / "more.jsonl", more, 2), tmp_path / "grown", processes=1)
    assert told["index_id"] == read_manifest(tmp_path / "whole")["index_id"]
    grown, whole = (
        load_index(tmp_path / name, retriever="dense").search(["a river in Egypt", "France"], 4) for name in ("grown", "whole")
    )
    assert [[hit.id for hit in hits] for hits in grown] == [[hit.id for hit in hits] for hits in whole]
    scores = [[[hit.score for hit in hits] for hits in found] for found in (grown, whole)]
    assert np.allclose(*scores, atol=1e-5)


def test_a_type_that_learnt_from_the_first_vectors_is_another_index_than_one_built_in_one_go(tmp_path):
    dense = DenseOptions(minilm(), "SQ8", max_length=16)
    built = build_index(write(tmp_path / "c.jsonl", ["Rome", "Paris"]), tmp_path / "index", engines=("dense",), dense=dense)
    told = add_passages(write(tmp_path / "more.jsonl", ["Cairo"], 2), tmp_path / "index")
    assert told["engines"]["dense"] == {**built["engines"]["dense"], "added_from": [2]}
    assert load_index(tmp_path / "index").search(["Cairo"], 1)[0][0].id == "doc-2"


def test_an_adopted_index_that_takes_no_more_vectors_is_told(tmp_path):
    passages, flat = ["Rome", "Paris"], tmp_path / "flat" / "dense"
    corpus = write(tmp_path / "c.jsonl", passages)
    built = build_index(corpus, tmp_path / "flat", engines=("dense",), dense=DenseOptions(minilm(), max_length=16))
    vectors = faiss.read_index(str(flat / built["engines"]["dense"]["file"])).reconstruct_n(0, 2)
    named = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    named.add_with_ids(vectors, np.arange(2))
    faiss.write_index(named, str(tmp_path / "named.index"))
    dense = DenseOptions(minilm(), max_length=16, adopt=str(tmp_path / "named.index"))
    build_index(corpus, tmp_path / "index", engines=("dense",), dense=dense)
    with pytest.raises(IndexingError, match="FAISS adds no vectors to an index like"):
        add_passages(write(tmp_path / "more.jsonl", ["Cairo"], 2), tmp_path / "index")


@pytest.mark.parametrize(
    "flags", [["--add", "x"], ["--corpus", "x", "--index", "y"], ["--add", "x", "--index", "y", "--out", "z"]]
)
def test_flags_that_do_not_go_together_are_told(flags, capsys):
    assert main(["index", *flags]) == 1
    assert "--add FILE and --index DIR go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--title-weight", "3"], "--add takes no options of engines"),
        (["--engine", "bm25", "dense"], "--add takes no options of engines"),
        (["--force"], "--add takes no options of engines"),
        (["--memory-gb", "nan"], "--memory-gb must be above 0"),
        (["--processes", "-1"], "--processes 0 (one per core) or more"),
    ],
)
def test_flags_that_would_be_without_effect_or_cannot_be_are_told(grown, flags, told, capsys):
    assert main(["index", "--add", str(grown / "more.jsonl"), "--index", str(grown / "index"), *flags]) == 1
    assert told in capsys.readouterr().err
    assert read_manifest(grown / "index")["passages"] == 2


def test_nothing_is_made_where_there_is_no_index(grown, capsys):
    assert main(["index", "--add", str(grown / "more.jsonl"), "--index", str(grown / "nowhere" / "index")]) == 1
    assert "is no index" in capsys.readouterr().err
    assert not (grown / "nowhere").exists()
