"""BM25 through FlashRAG's index: each defect of FlashRAG's query path, shown mended on a real index."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_serving import IndexingError
from rag_serving.cli import main
from rag_serving.indexing import BM25Options, build_index, read_corpus
from rag_serving.retrievers import load_index

PASSAGES = [
    "Running shoes\nShoes for runners who run marathons.",
    "Cooking\nCooks are cooking in kitchens.",
    "Marathon\nA marathon is a race of 42 kilometres.",
    "Stop words\nThe of and to in.",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(PASSAGES)))
    build_index(corpus, folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def bm25(index):
    return load_index(index)


def ids(hits):
    return [hit.id for hit in hits]


def test_queries_are_stemmed_as_the_index_is(bm25):
    assert ids(bm25.search(["runner"], 4)[0]) == ids(bm25.search(["runners"], 4)[0]) == ["0"]
    assert ids(bm25.search(["cook"], 4)[0]) == ["1"]


def test_asking_for_more_than_there_is_returns_what_matches(bm25):
    assert set(ids(bm25.search(["marathon"], 1_000)[0])) == {"0", "2"}


@pytest.mark.parametrize("query", ["", "   ", "the of and", "zzzz", "?!", "日本語", "\x00"])
def test_a_query_without_a_known_word_finds_nothing_and_spoils_nothing(bm25, query):
    found = bm25.search([query, "marathon", query], 2)
    assert found[0] == found[2] == []
    assert "2" in ids(found[1])


def test_scores_are_plain_floats_in_falling_order(bm25):
    hits = bm25.search(["marathon run race"], 4)[0]
    assert all(type(hit.score) is float for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    json.dumps([hit.score for hit in hits])


def test_passages_that_share_no_word_are_not_returned(bm25):
    assert all(hit.score > 0 for hit in bm25.search(["marathon"], 4)[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    queries=st.lists(st.one_of(st.text(max_size=30), st.sampled_from(["marathon", "cooks", "run shoes"])), max_size=6),
    k=st.integers(1, 6),
)
def test_a_batch_equals_its_queries_one_by_one(bm25, queries, k):
    assert bm25.search(queries, k) == [bm25.search([query], k)[0] for query in queries]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_batches_are_searched_with_the_threads_that_numba_has(index, threads):
    code = (
        "import sys; from rag_serving.retrievers import bm25, load_index; bm25._POSTINGS_OF_A_PART = 1; "
        "found = load_index(sys.argv[1], threads=64).search(['runner', 'cook', 'marathon'], 1); "
        "print([hits[0].id for hits in found])"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, "-c", code, str(index)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == "['0', '1', '2']", done.stderr


def test_an_existing_index_is_not_overwritten(index, tmp_path):
    corpus = index / "corpus.jsonl"
    with pytest.raises(IndexingError, match="exists"):
        build_index(corpus, index)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "line 1"),
        (['{"id": "1", "contents": "a"}', '{"id": "1", "contents": "b"}'], "the id '1' occurs twice, in passages 1 and 2"),
        (['{"id": "1", "contents": " "}'], "not blank"),
        (['{"id": "1"}'], "contents"),
        ([""], "no passages"),
    ],
)
def test_a_malformed_corpus_is_told_by_line_and_leaves_nothing_behind(tmp_path, lines, says):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("\n".join(lines) + "\n")
    with pytest.raises(IndexingError, match=says):
        build_index(corpus, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [corpus]


def test_a_compressed_corpus_is_read(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"id": 5, "contents": "a"}\n')
    assert list(read_corpus(path)) == [{"id": "5", "contents": "a"}]


def test_serving_a_directory_that_is_no_index_is_told_in_one_line(tmp_path, capsys):
    assert main(["serve", "--index", str(tmp_path), "--port", "0"]) == 1
    assert "rag-serving index --corpus FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_server_answers_and_a_busy_port_is_told(index):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rag_serving.cli", "serve", "--index", str(index), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.time() + 120
        while time.time() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/batch_search", json={"query": ["runner", "the of"], "top_n": 2, "return_score": True}
        )
        documents, scores = answer.json()
        assert [[doc["id"] for doc in row] for row in documents] == [["0"], []]
        assert len(scores[0]) == 1
        second = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)


def test_a_title_counts_as_often_as_its_weight_says_and_an_index_without_one_is_as_before(tmp_path):
    corpus = tmp_path / "c.jsonl"
    passages = ["Marathon\nThe shoes of Greece.", "Greece\nThe shoes of Marathon.", "no title: marathon of Greece"]
    corpus.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(passages)))
    plain, weighted = (build_index(corpus, tmp_path / str(w), bm25=BM25Options(title_weight=w)) for w in (1, 3))
    assert "title_weight" not in plain["engines"]["bm25"]
    assert weighted["engines"]["bm25"]["title_weight"] == 3
    assert plain["index_id"] != weighted["index_id"]

    def scores(weight, query):
        return {hit.id: hit.score for hit in load_index(tmp_path / str(weight)).search([query], 3)[0]}

    assert scores(1, "marathon")["0"] == scores(1, "marathon")["1"]
    assert scores(3, "marathon")["0"] > scores(3, "marathon")["1"]
    written = tmp_path / "w.jsonl"  # the same as titles that are written three times
    texts = ["Marathon Marathon " + passages[0], "Greece Greece " + passages[1], passages[2]]
    written.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(texts)))
    build_index(written, tmp_path / "written")
    assert scores("written", "shoes marathon") == scores(3, "shoes marathon")


@pytest.mark.parametrize("weight", [0, -1, 101])
def test_a_title_weight_that_cannot_be_is_told(tmp_path, weight):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "contents": "a"}\n')
    with pytest.raises(IndexingError, match="1 to 100 times"):
        build_index(tmp_path / "c.jsonl", tmp_path / "i", bm25=BM25Options(title_weight=weight))
