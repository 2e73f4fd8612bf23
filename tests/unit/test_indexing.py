"""Corpora of every format, and indexes that are complete, their own, and readable by FlashRAG."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag_serving import IndexingError
from rag_serving.cli import main
from rag_serving.corpus import Corpus
from rag_serving.indexing import DenseOptions, build_index, read_corpus, read_manifest, replace
from rag_serving.indexing.estimate import Trial, extrapolated
from rag_serving.indexing.formats import cut, detect
from rag_serving.indexing.manifest import check
from rag_serving.indexing.synthetic import synthetic, word
from rag_serving.retrievers import load_index
from tests import forked
from tests.servers import minilm

ROWS = [("a", "Rome", 'Rome is in "Italy".'), ("b", "Nice", "Nice is\tin France."), ("c", "Köln", "Köln liegt am Rhein.")]
WANTED = [{"id": i, "contents": f"{title}\n{text}"} for i, title, text in ROWS]


def write_flashrag(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in WANTED))


def write_titles(path):
    path.write_text("".join(json.dumps({"id": i, "title": title, "text": text}) + "\n" for i, title, text in ROWS))


def write_dpr(path):
    import csv

    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("id", "text", "title"), *((i, text, title) for i, title, text in ROWS)])


def write_parquet(path):
    pq.write_table(pa.table({"id": [r[0] for r in ROWS], "title": [r[1] for r in ROWS], "text": [r[2] for r in ROWS]}), path)


@pytest.mark.parametrize(
    ("name", "write", "format"),
    [
        ("c.jsonl", write_flashrag, "flashrag"),
        ("titles.jsonl", write_titles, "flashrag"),
        ("psgs.tsv", write_dpr, "dpr"),
        ("c.parquet", write_parquet, "parquet"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_format_gives_the_same_passages(tmp_path, name, write, format, compressed):
    path = tmp_path / name
    write(path)
    if compressed:
        if format == "parquet":
            pytest.skip("parquet is compressed itself")
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert detect(path) == format
    assert list(read_corpus(path)) == WANTED


def test_a_kilt_page_is_cut_into_passages_with_its_title(tmp_path):
    path = tmp_path / "kilt.jsonl"
    words = [f"w{i}" for i in range(230)]
    paragraphs = [
        "Rome\n",
        " ".join(words[:120]) + "\n",
        "Section::::History.\n",
        "BULLET::::- " + " ".join(words[120:]) + "\n",
    ]
    path.write_text(
        json.dumps({"wikipedia_id": "7", "wikipedia_title": "Rome", "text": [p.strip("\n") for p in paragraphs]}) + "\n"
    )
    passages = list(read_corpus(path))
    assert [row["id"] for row in passages] == ["7-0", "7-1", "7-2"]
    assert all(row["contents"].startswith("Rome\n") for row in passages)
    assert " ".join(row["contents"].split("\n")[1] for row in passages).split() == words


def test_a_folder_of_texts_is_cut_and_named_by_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("# The Title\n" + "word " * 150)
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "ignored.pdf").write_text("x")
    (tmp_path / "empty.txt").write_text("")
    assert [(row["id"], row["contents"].split("\n")[0]) for row in read_corpus(tmp_path)] == [
        ("a.txt#0", "a"),
        ("sub/b.md#0", "The Title"),
        ("sub/b.md#1", "The Title"),
    ]


def test_passages_overlap_nowhere_and_lose_nothing():
    words = [str(i) for i in range(250)]
    pieces = list(cut(" ".join(words)))
    assert [len(piece.split()) for piece in pieces] == [100, 100, 50]
    assert " ".join(pieces).split() == words


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.tsv", "a\tb\n", "line 1: expected the header"),
        ("c.tsv", "id\ttext\ttitle\n1\tonly\n", "line 2: 2 fields where the header names 3"),
        ("c.jsonl", '{"wikipedia_title": "x"}\n', "line 1: expected wikipedia_id"),
        ("c.parquet", "no parquet", "no parquet file"),
        ("c.xyz", "", "--format"),
        ("c.jsonl.gz", "not compressed", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(IndexingError, match=says):
        list(read_corpus(path))


def test_a_lone_surrogate_in_a_passage_is_replaced_and_counted(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "1", "contents": "bad \\ud800 here"}\n{"id": "2", "contents": "pair \\ud83d\\ude00"}\n')
    manifest = build_index(path, tmp_path / "i")
    assert manifest["corpus"]["repaired"] == 1
    assert [Corpus(tmp_path / "i")[row]["contents"] for row in (0, 1)] == ["bad \ufffd here", "pair \U0001f600"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    write_flashrag(folder / "c.jsonl")
    build_index(folder / "c.jsonl", folder / "i", engines=("bm25", "dense"), dense=DenseOptions(minilm()))
    return folder / "i"


def test_flashrag_itself_reads_both_indexes(index, tmp_path):
    from flashrag.retriever.retriever import BM25Retriever, DenseRetriever

    common = {
        "corpus_path": str(index / "corpus.jsonl"), "retrieval_topk": 1, "save_retrieval_cache": False, "use_retrieval_cache": False,
        "retrieval_cache_path": None, "use_reranker": False, "silent_retrieval": True,
    }  # fmt: skip
    sparse = BM25Retriever({**common, "retrieval_method": "bm25", "bm25_backend": "bm25s", "index_path": str(index / "bm25")})
    assert sparse.batch_search(["italy"], 1)[0][0]["id"] == "a"
    name = read_manifest(index)["engines"]["dense"]["file"]
    dense = DenseRetriever({
        **common, "retrieval_method": "minilm", "index_path": str(index / "dense" / name), "retrieval_model_path": minilm(),
        "retrieval_pooling_method": "mean", "retrieval_query_max_length": 64, "retrieval_use_fp16": False, "retrieval_batch_size": 8,
        "use_sentence_transformer": False, "faiss_gpu": False, "instruction": None,
    })  # fmt: skip
    ours = load_index(index, retriever="dense").search(["a city on the Rhine"], 1)[0]
    theirs, scores = dense.batch_search(["a city on the Rhine"], 1, return_score=True)
    assert theirs[0][0]["id"] == ours[0].id == "c"
    assert scores[0][0] == pytest.approx(ours[0].score, abs=1e-5)


def test_the_manifest_names_corpus_engines_versions_and_every_file(index):
    manifest = read_manifest(index)
    assert manifest["passages"] == 3
    assert set(manifest["engines"]) == {"bm25", "dense"}
    on_disk = {path.relative_to(index).as_posix() for path in index.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert manifest["versions"]["bm25s"]


@pytest.mark.parametrize("change", ["other corpus", "other vectors", "missing"])
def test_an_index_that_does_not_belong_to_its_corpus_is_refused(index, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    if change == "other corpus":
        text = (copy / "corpus.jsonl").read_text()
        (copy / "corpus.jsonl").write_text(text.replace("Italy", "Spain"))  # as long as before
    elif change == "other vectors":
        path = next((copy / "dense").iterdir())
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    else:
        (copy / "bm25" / "vocab.index.json").unlink()
    with pytest.raises(IndexingError, match="missing" if change == "missing" else "not the file this index was built with"):
        load_index(copy)
    assert main(["serve", "--index", str(copy), "--port", "0"]) == 1


@pytest.mark.parametrize("place", ["files", "engines"])
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "bm25/../../secret"])
def test_a_manifest_that_names_a_file_outside_of_its_index_is_refused(tmp_path, place, name):
    (tmp_path / "secret").write_text("x")
    manifest = {"files": {}, "engines": {"dense": {"file": "e5_Flat.index"}}}
    if place == "files":
        manifest["files"] = {name: {"bytes": 1, "sha256": ""}}
    else:
        manifest["engines"]["dense"]["file"] = name
    with pytest.raises(IndexingError, match="names a file outside of the index"):
        check(tmp_path / "i", manifest, "never")


def test_sizes_are_checked_even_without_hashes(index, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    with (copy / "corpus.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(IndexingError, match="bytes instead of"):
        check(copy, read_manifest(copy), "never")


def test_an_engine_that_the_index_lacks_is_told(tmp_path):
    write_flashrag(tmp_path / "c.jsonl")
    build_index(tmp_path / "c.jsonl", tmp_path / "i")
    with pytest.raises(ValueError, match="holds bm25, not dense; build it with"):
        load_index(tmp_path / "i", retriever="hybrid")


def test_an_unknown_faiss_type_or_a_missing_encoder_is_told(tmp_path):
    write_flashrag(tmp_path / "c.jsonl")
    with pytest.raises(IndexingError, match="--encoder"):
        build_index(tmp_path / "c.jsonl", tmp_path / "i", engines=("dense",))
    with pytest.raises(IndexingError, match="does not know the index type 'Flatt'"):
        build_index(tmp_path / "c.jsonl", tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm(), "Flatt"))
    with pytest.raises(ValueError, match="no encoder could be loaded"):
        build_index(tmp_path / "c.jsonl", tmp_path / "j", engines=("dense",), dense=DenseOptions(str(tmp_path)))


def test_a_faiss_index_made_elsewhere_is_adopted_if_it_fits(index, tmp_path):
    made = next((index / "dense").iterdir())
    build = {"engines": ("dense",), "dense": DenseOptions(minilm(), adopt=str(made))}
    build_index(index / "corpus.jsonl", tmp_path / "i", **build)
    query = ["a city on the Rhine"]
    assert load_index(tmp_path / "i").search(query, 3) == load_index(index, retriever="dense").search(query, 3)
    (tmp_path / "other.jsonl").write_text('{"id": "1", "contents": "one"}\n')
    with pytest.raises(IndexingError, match="holds 3 vectors of 384 numbers; the corpus has 1 passages"):
        build_index(tmp_path / "other.jsonl", tmp_path / "j", **build)


def tree(directory):
    """Return every file's bytes."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


NOTES = {"request.json", "corpus.done.json", "bm25.done.json", "dense.done.json"}
BUILD = """
import sys
from pathlib import Path
from rag_serving.indexing import DenseOptions, build_index
dense = DenseOptions(sys.argv[3], max_length=8, shard=100)
build_index(Path(sys.argv[1]), Path(sys.argv[2]), engines=("bm25", "dense"), dense=dense)
"""


@pytest.mark.slow
def test_killed_whenever_it_gets_further_the_same_command_completes_the_same_index(tmp_path):
    corpus, building = tmp_path / "c.jsonl", tmp_path / ".broken.building"
    with corpus.open("w") as file:
        for _, row in zip(range(300), synthetic(12), strict=False):
            file.write(json.dumps(row) + "\n")

    def build(name: str) -> forked.Process:
        return forked.Process("-c", BUILD, str(corpus), str(tmp_path / name), minilm())

    def there() -> set[str]:
        return {name for _, _, names in os.walk(building) for name in names}

    done = build("whole").wait()
    assert done.returncode == 0, done.stderr
    seen: set[str] = set()
    killed = 0
    while not (tmp_path / "broken").exists():
        process = build("broken")
        while process.running() and there() <= seen:
            time.sleep(0.001)
        if process.running():
            process.kill()
            killed += 1
        ended = process.wait()
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        seen |= there()
    assert killed >= 5  # of some twenty files, those that come at the same moment count once
    assert {"corpus.done.json", "bm25.done.json", "00000.npy"} <= seen  # a later one may come with the end, and is not seen
    # one that was killed between its last two steps still has the notes of its stages
    kept = {name: data for name, data in tree(tmp_path / "broken").items() if name not in NOTES}
    assert kept == tree(tmp_path / "whole")


def test_two_builders_of_one_index_do_not_meet(tmp_path):
    import fcntl

    write_flashrag(tmp_path / "c.jsonl")
    with (tmp_path / ".i.building.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(IndexingError, match="another process is building"):
            build_index(tmp_path / "c.jsonl", tmp_path / "i")


def test_what_an_interrupted_build_of_another_corpus_left_is_not_used(tmp_path):
    write_flashrag(tmp_path / "c.jsonl")
    building = tmp_path / ".i.building"
    building.mkdir()
    (building / "request.json").write_text("{}")
    (building / "corpus.done.json").write_text('{"sha256": "lies"}')
    assert build_index(tmp_path / "c.jsonl", tmp_path / "i")["corpus"]["sha256"] != "lies"


@pytest.mark.parametrize("exchange", [True, False])
def test_an_index_is_replaced_and_one_of_both_is_there_whenever_something_is_deleted(tmp_path, monkeypatch, exchange):
    write_flashrag(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('{"id": "1", "contents": "another corpus"}\n')
    build_index(tmp_path / "c.jsonl", tmp_path / "i")
    if not exchange:
        monkeypatch.setattr(replace, "_exchanged", lambda *_: False)
    delete = shutil.rmtree

    def watched(path, *arguments, **named):
        delete(path, *arguments, **named)
        assert read_manifest(tmp_path / "i")["passages"] in (1, 3)

    monkeypatch.setattr(shutil, "rmtree", watched)
    build_index(tmp_path / "d.jsonl", tmp_path / "i", force=True)
    assert read_manifest(tmp_path / "i")["passages"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "d.jsonl", "i"]


@pytest.mark.parametrize("moment", ["before the new one is in place", "before the old one is deleted"])
def test_a_replacement_that_was_killed_is_told_and_put_right(tmp_path, monkeypatch, moment):
    write_flashrag(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('{"id": "1", "contents": "another corpus"}\n')
    build_index(tmp_path / "c.jsonl", tmp_path / "i")
    early = moment == "before the new one is in place"
    rename = Path.rename

    def killed(self, target):
        if early and self.name == ".i.building":
            raise KeyboardInterrupt
        rename(self, target)
        if not early and self.name == ".i.building":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(replace, "_exchanged", lambda *_: False)
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(tmp_path / "d.jsonl", tmp_path / "i", force=True)
    if early:
        with pytest.raises(IndexingError, match=r"the old index is .*\.i\.old"):
            read_manifest(tmp_path / "i")
    with pytest.raises(IndexingError, match="--force"):
        build_index(tmp_path / "d.jsonl", tmp_path / "i")
    assert read_manifest(tmp_path / "i")["passages"] == (3 if early else 1)
    build_index(tmp_path / "d.jsonl", tmp_path / "i", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "d.jsonl", "i"]


def test_synthetic_passages_are_the_same_for_the_same_seed():
    first = [row for _, row in zip(range(5), synthetic(20, 1), strict=False)]
    assert first == [row for _, row in zip(range(5), synthetic(20, 1), strict=False)]
    assert len({row["id"] for row in first}) == 5


def trial(passages, exponent=0.56):
    stems = int(100 * passages**exponent)
    postings = 60 * passages
    memory = 200e6 + 24 * passages + 8 * postings + 500 * stems
    return Trial(passages, stems, postings, memory, 2 + passages * 1e-4, 700 * passages, 480 * passages, 90 * stems, 150e6)


def test_an_estimate_lets_the_vocabulary_grow_as_it_grew_between_the_trials():
    told = extrapolated(trial(15_000), trial(45_000), 20_000_000, 1 << 30, 1)
    whole = trial(20_000_000)
    assert told.disk == pytest.approx(whole.corpus + whole.arrays + whole.vocabulary, rel=0.01)
    assert told.build_memory == pytest.approx(whole.memory - 8 * whole.postings + (1 << 30), rel=0.01)
    assert told.build_seconds == pytest.approx(whole.seconds, rel=0.01)
    assert told.serve_memory < 0.3e9 < told.serve_pages


def test_an_estimate_counts_the_vocabulary_in_every_process_that_builds():
    one, four = (extrapolated(trial(15_000), trial(45_000), 20_000_000, 1 << 30, n) for n in (1, 4))
    assert four.build_memory - one.build_memory == pytest.approx(4 * 200e6 + 1.5 * 500 * trial(20_000_000).stems, rel=0.01)
    assert four.build_seconds < one.build_seconds / 3


def test_synthetic_text_has_as_many_distinct_words_as_real_text_would():
    seen, counts = set(), []
    for number, passage in enumerate(synthetic(100), 1):
        seen.update(passage["contents"].split())
        if number in (4_000, 8_000):
            counts.append(len(seen))
            if number == 8_000:
                break
    assert np.log2(counts[1] / counts[0]) == pytest.approx(0.56, abs=0.02)
    assert len({word(rank) for rank in range(1, 30_000)}) == 29_999


@pytest.mark.slow
def test_estimate_prints_every_index_type(tmp_path, capsys):
    assert main(["estimate", "--passages", "100000", "--words", "20", "--dimension", "384", "--json"]) == 0
    told = {entry["index"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert told["dense Flat"]["disk"] > 100_000 * 384 * 4
    assert told["bm25"]["build_seconds"] > 0
    assert 0 < told["bm25"]["query_ms"] < 1_000
    assert told["dense Flat"]["query_ms"] is None
    assert told["dense IVF4096,PQ48"]["disk"] < told["dense Flat"]["disk"]
    assert 0 < told["bm25"]["serve_memory"] < told["bm25"]["build_memory"] < 2e9
    assert main(["estimate"]) == 1
