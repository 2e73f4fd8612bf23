"""`rag-serving search` and `rag-serving bench`, against the real application over HTTP."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rag_serving import ServingError
from rag_serving.app import create_app
from rag_serving.asking import distinct, shown
from rag_serving.cli import main
from rag_serving.indexing import build_index
from rag_serving.load import queries
from rag_serving.naming import address_of
from rag_serving.retrievers import DummyRetriever, Opened, Retriever
from rag_serving.settings import Settings
from tests.servers import app_in_thread, free_port, in_thread

PASSAGES = [("1", "Rome\nRome is in Italy.\nOn the Tiber."), ("2", "Paris\nParis is in France.")]


class Counting(Retriever):
    """Finds nothing, and counts what it is asked."""

    size = 0

    def __init__(self):
        self.asked = Counter()

    def search(self, queries, k):
        self.asked.update(queries)
        return [[] for _ in queries]


@pytest.fixture(scope="module")
def url():
    with in_thread(DummyRetriever(PASSAGES), tokens="s3cret") as address:
        yield address


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asking")
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": i, "contents": text}) + "\n" for i, text in PASSAGES))
    build_index(folder / "c.jsonl", folder / "i")
    return folder / "i"


def test_a_service_is_searched_and_what_is_found_can_be_read(url, capsys, monkeypatch):
    monkeypatch.setenv("RETRIEVAL_TOKEN", "s3cret")
    assert main(["search", "italy", "--url", url]) == 0
    assert capsys.readouterr().out == "1. Rome   [1, 1]\n   Rome is in Italy.\n   On the Tiber.\n"
    assert main(["search", "is in", "--url", url, "-k", "2", "--json"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
    assert main(["search", "nowhere", "--url", url]) == 0
    assert capsys.readouterr().out == "nothing found\n"


def test_an_index_is_searched_without_a_service(index, capsys):
    assert main(["search", "Italy", "--index", str(index), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contents"] == PASSAGES[0][1]
    assert main(["search", " ", "--index", str(index)]) == 1
    assert "give words" in capsys.readouterr().err


def test_what_a_service_refuses_and_one_that_is_not_there_are_told_in_a_line(url, capsys, tmp_path):
    (tmp_path / "q").write_text("a\n")
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, told in [
        (["search", "italy", "--url", url, "--token", ""], "refused with 401: a valid token is needed"),
        (["search", "italy", "--url", nobody], f"{nobody} does not answer"),
        (["bench", "--queries", str(tmp_path / "q"), "--url", nobody], f"nothing answers at {nobody}"),
        (["bench", "--queries", str(tmp_path / "none"), "--url", nobody], "give a file of one query a line"),
    ]:
        assert main(arguments) == 1
        assert told in capsys.readouterr().err


def test_a_passage_cannot_write_to_the_terminal_as_it_likes():
    assert shown([{"id": "\x1b[2J", "contents": "a\x07\x9b31m\u202eb\nc\rd", "score": 1.0}]) == "1. a31mb   [[2J, 1]\n   cd"


def test_a_bench_asks_every_query_once_and_tells_its_figures(tmp_path, capsys):
    (tmp_path / "q").write_text("".join(f"query {i % 50}\n" for i in range(100)) + "\n")
    engine = Counting()
    with in_thread(engine, cache_mb=0) as address:
        engine.asked.clear()
        assert main(["bench", "--url", address, "--queries", str(tmp_path / "q"), "--clients", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answered"], told["all_asked"], told["not_answered"]) == (50, True, {})
    assert 0 < told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"]
    assert set(engine.asked) == {f"query {i}" for i in range(50)}
    assert set(engine.asked.values()) == {1}


def test_a_bench_that_is_refused_says_with_what(url, tmp_path, capsys):
    (tmp_path / "q").write_text("a\nb\n")
    assert main(["bench", "--url", url, "--token", "wrong", "--queries", str(tmp_path / "q")]) == 1
    assert "{'401': 2}" in capsys.readouterr().out
    assert main(["bench", "--url", url, "--token", "wrong", "--queries", str(tmp_path / "q"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is no JSON
    assert (told["p50_ms"], told["p99_ms"], told["answered"]) == (None, None, 0)


def test_queries_of_an_index_are_distinct_and_a_small_one_has_only_so_many(index, tmp_path):
    asked = queries(index, 1_000, words=1)
    assert len(asked) == len(set(asked))
    assert set(asked) == {word for _, text in PASSAGES for word in text.split()}
    (tmp_path / "q").write_text("b\n\n a \nb\n")
    assert distinct(tmp_path / "q") == ["b", "a"]


@pytest.fixture(scope="module")
def several():
    """A service of two indexes, whose passages tell which."""

    def load(settings, report):
        (name,) = settings.index
        return Opened(DummyRetriever([(name, f"Rome\nof {name}")]), name, name)

    with app_in_thread(create_app(Settings(index={"wiki": Path("w"), "private": Path("p")}), load)) as address:
        yield address


def test_one_of_several_indexes_is_asked_by_its_name(several, index, tmp_path, capsys):
    for more, name in (([], "wiki"), (["--index", "private"], "private")):
        assert main(["search", "rome", "--url", several, *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == name
    (tmp_path / "q").write_text("rome\n")
    for more in (["--queries", str(tmp_path / "q"), "--index", "private"], ["--index", f"private={index}", "--count", "2"]):
        assert main(["bench", "--url", several, *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["not_answered"] == {}


def test_a_name_that_no_index_has_is_told_with_those_that_there_are(several, tmp_path, capsys):
    (tmp_path / "q").write_text("rome\n")
    for command in (["search", "rome"], ["bench", "--queries", str(tmp_path / "q")]):
        assert main([*command, "--url", several, "--index", "nope"]) == 1
        assert "there is no index 'nope'; there are: wiki, private" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "a/b", "", "%2e", "x" * 65, "a\n"])
def test_what_can_be_no_name_of_an_index_never_becomes_a_path(name):
    with pytest.raises(ServingError, match="no index of a service is called"):
        address_of("http://host", name)


def test_an_address_that_names_an_index_takes_no_other():
    assert address_of("http://host/", "wiki") == "http://host/indexes/wiki"
    assert address_of("http://host/indexes/wiki", None) == "http://host/indexes/wiki"
    with pytest.raises(ServingError, match="names the index 'wiki' already, and --index 'private'"):
        address_of("http://host/indexes/wiki/", "private")


def test_a_bench_without_queries_says_where_they_come_from(capsys):
    assert main(["bench"]) == 1
    assert "give --queries FILE, one a line, or --index DIR" in capsys.readouterr().err
