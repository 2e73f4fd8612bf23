"""`where`: what matches, what is refused, and that k passages are found as long as there are so many."""

from __future__ import annotations

import json
import shutil

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from rag_serving import IndexingError, ServingError
from rag_serving.app import create_app
from rag_serving.cli import main
from rag_serving.corpus import FIELDS, MOST_FIELDS, Corpus
from rag_serving.indexing import add_passages, build_index
from rag_serving.indexing.metadata import MetadataWriter
from rag_serving.settings import Settings
from rag_serving.where import MAX_CHARACTERS, MAX_FIELDS, MAX_VALUES, Where
from tests.servers import wait_ready

NAN, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("where", "said", "matches"),
    [
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": None}, False),
        ({"a": 1}, None, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        ({"a": [1, "x"]}, {"a": "x"}, True),
        ({"a": "x"}, {"a": ["y", "x"]}, True),
        ({"a": "x"}, {"a": {"x": "x"}}, False),
        ({"a": {"gte": 2, "lt": 3}}, {"a": 2}, True),
        ({"a": {"gte": 2, "lt": 3}}, {"a": 3}, False),
        ({"a": {"gt": 2}}, {"a": "3"}, False),
        ({"a": {"gt": 2}}, {"a": ["x", None, 3]}, True),
        ({"a": {"gte": "2018-05", "lte": "2018-06"}}, {"a": "2018-05-31"}, True),
        ({"a": {"lt": 10**400}}, {"a": 1.5}, True),
        ({"a": 2**53 + 1}, {"a": float(2**53)}, False),
    ],
)
def test_values_match_by_kind_and_value(where, said, matches):
    assert Where(where).matches(json.dumps(said).encode()) is matches


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"a": NAN}, "NaN"),
        ({"a": {"gt": -ENDLESS}}, "without an end"),
        ({"a": None}, "got null"),
        ({"a": [[1]]}, "a list in a list"),
        ({"a": {"b": {"c": 1}}}, "a range is made of gt, gte, lt, lte, got 'b'"),
        ({"a": {"gt": {"gt": 1}}}, "got an object"),
        ({"a": {}}, "got nothing"),
        ({"a": []}, "an empty list"),
        ({"a": {"gt": 1, "lt": "x"}}, "got number and text"),
        ({"a": {"gt": True}}, "got boolean"),
        ({"a": "\ud800"}, "no Unicode text"),
        ({"\ud800": 1}, "no Unicode text"),
        ({"a": "x" * (MAX_CHARACTERS + 1)}, "4096 characters"),
        ({"x" * (MAX_CHARACTERS + 1): 1}, "4096 characters"),
        ({str(i): 1 for i in range(MAX_FIELDS + 1)}, "17 fields"),
        ({"a": [1] * MAX_VALUES, "b": [1]}, "1001 values"),
    ],
)
def test_conditions_that_cannot_be_are_told(where, told):
    with pytest.raises(ServingError, match=told) as refused:
        Where(where)
    assert len(str(refused.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["gt", "lte", "x"]), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=2), json_values, max_size=3), st.dictionaries(st.text(max_size=2), json_values, max_size=3)
)
def test_whatever_is_asked_of_whatever_is_said_is_answered_or_refused_in_words(where, said):
    try:
        asked = Where(where)
    except ServingError:
        return
    import orjson

    try:
        line = orjson.dumps(said)
    except TypeError:  # numbers beyond 64 bits, which no index keeps
        return
    assert asked.matches(line) in (True, False)


def test_names_of_fields_cannot_fill_a_message_or_move_a_cursor():
    with pytest.raises(ServingError, match=r"have no field 'b'; there are: .* and 50 more") as refused:
        Where({"b": 1}).check({f"\x1b[2J{i}{'x' * 5_000}" for i in range(100)})
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 10_000
    Where({"b": 1}).check(None)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("where")
    # the longer a passage the lower its rank: those of 2018 are the last
    rows = [{"id": f"p{i}", "contents": "river" + " stone" * i, "year": 2018 if i >= 60 else "old", "n": i} for i in range(64)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(folder / "c.jsonl", folder / "i", processes=1)
    return folder / "i"


@pytest.fixture(scope="module")
def http(index):
    with TestClient(create_app(Settings(index=index))) as client:
        wait_ready(client)
        yield client


def search(http, where, k=3, **more):
    answer = http.post("/v1/search", json={"queries": ["river"], "top_k": k, "where": where, **more})
    assert answer.status_code == 200
    told = answer.json()
    return [hit["id"] for hit in told["results"][0]], told


def test_k_passages_that_match_are_found_however_low_they_rank(http):
    for _ in range(2):  # also from the cache
        found, told = search(http, {"year": 2018})
        assert (found, told["missing"], told["bound_met"]) == (["p60", "p61", "p62"], [0], [False])
    found, told = search(http, {"year": [2018, "new"]}, k=5)
    assert (found, told["missing"], told["bound_met"]) == (["p60", "p61", "p62", "p63"], [1], [False])
    assert search(http, {"n": {"gte": 3, "lt": 5}, "year": "old"})[0] == ["p3", "p4"]
    assert search(http, {"n": {"lt": 10**400, "gt": -(10**400)}})[0] == ["p0", "p1", "p2"]
    found, told = search(http, {"year": 2018}, exclude_ids=["p60"], metadata=True)
    assert found == ["p61", "p62", "p63"]
    assert told["results"][0][0]["metadata"] == {"year": 2018, "n": 61}


def test_where_the_bound_is_met_that_is_told(index):
    with TestClient(create_app(Settings(index=index, max_top_k=20))) as client:
        wait_ready(client)
        found, told = search(client, {"n": {"gte": 18}})
        assert (found, told["missing"], told["bound_met"], told["excluded"]) == (["p18", "p19"], [1], [True], [18])


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ('{"yaer": 2018}', 400, "no field 'yaer'; there are: 'n', 'year'"),
        ('{"n": NaN}', 400, "NaN"),
        ('{"n": 1e999}', 400, "without an end"),
        ('{"n": ' + "[" * 100_000 + "]" * 100_000 + "}", 422, ""),
        ('["n"]', 422, "where"),
        ('{"n": ' + "1" * 5_000 + "}", 422, ""),
    ],
)
def test_what_cannot_be_asked_is_refused(http, body, status, told):
    answer = http.post("/v1/search", content=f'{{"queries": ["river"], "where": {body}}}')
    assert answer.status_code == status
    assert told in answer.json()["detail"]
    assert len(answer.text) < 1_000


def test_nothing_asked_of_metadata_is_a_search_as_without(http):
    for where in ({}, None):
        assert "bound_met" not in search(http, where)[1]


def test_an_index_without_the_file_of_fields_reads_them(index, tmp_path):
    assert json.loads((index / FIELDS).read_text()) == ["n", "year"]
    copy = shutil.copytree(index, tmp_path / "copy")
    (copy / FIELDS).unlink()
    assert Corpus(copy).fields == {"n", "year"}
    (copy / FIELDS).write_text("null")  # more than can be named
    assert Corpus(copy).fields is None
    for damaged in ("[", "[1]", "{}"):
        (copy / FIELDS).write_text(damaged)
        with pytest.raises(IndexingError, match=f"{FIELDS} cannot be read"):
            Corpus(copy)


def test_fields_are_named_up_to_a_number_and_of_added_passages_too(tmp_path):
    corpus, more = tmp_path / "c.jsonl", tmp_path / "more.jsonl"
    corpus.write_text('{"id": "a", "contents": "x", "one": 1}\n')
    more.write_text('{"id": "b", "contents": "x", "two": 2}\n')
    build_index(corpus, tmp_path / "i", processes=1)
    add_passages(more, tmp_path / "i", processes=1)
    assert Corpus(tmp_path / "i").fields == {"one", "two"}
    with MetadataWriter(tmp_path) as writer:
        for i in range(MOST_FIELDS + 1):
            writer.add({f"f{i}": i})
        writer.finish()
    assert (tmp_path / FIELDS).read_text() == "null\n"


def test_the_command_searches_an_index_by_conditions(index, capsys):
    assert main(["search", "river", "--index", str(index), "-k", "2", "--where", '{"year": 2018}', "--json"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["p60", "p61"]
    for where, told in (('{"yaer": 1}', "there are: 'n', 'year'"), ("[", "--where is a JSON object"), ('{"n": NaN}', "NaN")):
        assert main(["search", "river", "--index", str(index), "--where", where]) == 1
        assert told in capsys.readouterr().err
