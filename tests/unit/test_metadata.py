"""What a corpus says of its passages beside their text: kept beside the corpus, bounded, told only where it is asked for."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

from rag_serving import IndexingError
from rag_serving.app import create_app
from rag_serving.cli import main
from rag_serving.corpus import FIELDS, METADATA, METADATA_OFFSETS, Corpus
from rag_serving.indexing import add_passages, build_index, read_corpus, read_manifest
from rag_serving.indexing.metadata import METADATA_BYTES, MetadataWriter
from rag_serving.indexing.verify import verify
from rag_serving.retrievers import Hit, load_index, open_retriever
from rag_serving.service import Answer, Refused
from rag_serving.settings import Settings
from rag_serving.v1 import V1
from rag_serving.wire_v1 import SearchRequest
from tests.servers import wait_ready
from tests.unit.test_adding import files

HOSTILE = '</script><script>alert(1)</script>", "id": "forged'
ROWS = [
    {"id": "rome#0", "contents": "Rome\nThe Tiber.", "metadata": {"year": 2018, "tags": ["a", {"b": None}]}},
    {"id": "rome#1", "contents": "Rome\nSeven hills.", "url": HOSTILE, "year": None},
    {"id": "alone", "contents": "a river"},
    {"id": "large", "contents": "Large\nriver", "vector": [0.5] * METADATA_BYTES},
]
SAID = [{"year": 2018, "tags": ["a", {"b": None}]}, {"url": HOSTILE}, {}, None]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bare(rows):
    return [{"id": row["id"], "contents": row["contents"]} for row in rows]


def said(index):
    corpus = Corpus(index)
    return [json.loads(corpus.metadata_of(row)) for row in range(len(corpus))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of a corpus that says more of its passages, and one of the same passages alone."""
    folder = tmp_path_factory.mktemp("metadata")
    build_index(write(folder / "c.jsonl", ROWS), folder / "said", processes=1)
    build_index(write(folder / "c.jsonl", bare(ROWS)), folder / "bare", processes=1)
    return folder


@pytest.fixture(scope="module")
def http(folder):
    with TestClient(
        create_app(Settings(index={"said": folder / "said", "bare": folder / "bare"}, max_metadata_bytes=200))
    ) as client:
        wait_ready(client)
        yield client


def test_fields_and_an_object_are_kept_beside_a_corpus_that_stays_as_it_was(folder):
    one, other = files(folder / "said"), files(folder / "bare")
    assert set(one) - set(other) == {METADATA, METADATA_OFFSETS, FIELDS}
    assert {name: data for name, data in one.items() if name in other} == other
    assert said(folder / "said") == SAID
    assert said(folder / "bare") == [{}] * 4


def test_an_index_without_metadata_has_the_name_that_it_had_and_one_with_metadata_another(folder):
    assert read_manifest(folder / "bare")["index_id"] == "29a8ce135b835cb9"
    assert "metadata" not in read_manifest(folder / "bare")["corpus"]
    assert read_manifest(folder / "said")["index_id"] != read_manifest(folder / "bare")["index_id"]


def test_what_is_too_large_or_no_json_is_left_out_and_counted(folder, tmp_path, capsys):
    told = read_manifest(folder / "said")["corpus"]["metadata"]
    assert (told["passages"], told["left_out"]) == (2, 1)
    rows = [
        {"id": "a", "contents": "x", "number": 10**30},
        {"id": "b", "contents": "x", "half": "\ud800"},
        {"id": "c", "contents": "x", "fits": "x" * (METADATA_BYTES - len('{"fits":""}'))},
        {"id": "d", "contents": "x", "fits not": "x" * METADATA_BYTES},
    ]
    build_index(write(tmp_path / "c.jsonl", rows), tmp_path / "i", processes=1)
    assert said(tmp_path / "i") == [None, None, {"fits": rows[2]["fits"]}, None]
    shown = capsys.readouterr().err
    assert "the metadata of 3 passages are left out" in shown
    assert "the first: passage 1, no JSON" in shown
    assert "xxx" not in shown


def test_a_row_nested_without_an_end_is_told_with_its_line_not_a_traceback(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "a", "contents": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(IndexingError, match="line 1: no JSON"):
        build_index(tmp_path / "c.jsonl", tmp_path / "i", processes=1)


def test_tables_have_metadata_in_their_other_columns(tmp_path):
    (tmp_path / "c.tsv").write_text("id\ttext\ttitle\tlicence\n1\tx\tRome\tCC0\n")
    assert [row["metadata"] for row in read_corpus(tmp_path / "c.tsv", metadata=True)] == [{"licence": "CC0"}]
    table = {"id": ["1", "2"], "contents": ["x", "y"], "year": [1.0, float("nan")], "raw": [None, b"\x00"]}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    assert "metadata" not in next(read_corpus(tmp_path / "c.parquet"))
    build_index(tmp_path / "c.parquet", tmp_path / "i", processes=1)
    assert said(tmp_path / "i") == [{"year": 1.0}, None]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # all but halves of characters
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
metadata = st.none() | st.dictionaries(texts, values, min_size=1, max_size=3)


@example([None, {"a": "b\n"}, None])
@given(st.lists(metadata, min_size=1, max_size=8))
def test_what_is_kept_is_what_was_said_of_each_row(tmp_path_factory, given_):
    folder = tmp_path_factory.mktemp("m")
    with MetadataWriter(folder) as writer:
        for one in given_:
            writer.add(one)
        told = writer.finish()
    if not told:
        assert given_ == [None] * len(given_)
        return
    (folder / "corpus.jsonl").write_bytes(b"x\n" * len(given_))
    np.save(folder / "corpus.offsets.npy", 2 * np.arange(len(given_) + 1))
    corpus = Corpus(folder)
    assert [json.loads(corpus.metadata_of(row)) for row in range(len(given_))] == [one or {} for one in given_]


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 1])
def test_an_index_that_was_added_to_is_the_one_built_in_one_go(tmp_path, cut, first):
    rows = ROWS if not first else [ROWS[2], *ROWS[:2], ROWS[3]]
    build_index(write(tmp_path / "c.jsonl", rows[:cut]), tmp_path / "grown", processes=1)
    told = add_passages(write(tmp_path / "more.jsonl", rows[cut:]), tmp_path / "grown", processes=1)
    whole = build_index(write(tmp_path / "c.jsonl", rows), tmp_path / "whole", processes=1)
    assert files(tmp_path / "grown") == files(tmp_path / "whole")
    assert told["index_id"] == whole["index_id"]
    assert told["corpus"]["metadata"] == whole["corpus"]["metadata"]


def test_passages_without_metadata_can_be_added_to_those_with_and_the_other_way_round(tmp_path):
    for name, rows in (("a", ROWS[:1]), ("b", ROWS[2:3])):
        build_index(write(tmp_path / "c.jsonl", rows), tmp_path / name, processes=1)
        add_passages(write(tmp_path / "more.jsonl", bare(ROWS[1:2])), tmp_path / name, processes=1)
    assert said(tmp_path / "a") == [SAID[0], {}]
    assert not (tmp_path / "b" / METADATA).exists()


def test_verify_tells_of_it_and_finds_damage(folder, tmp_path, capsys):
    assert "2 passages have metadata; those of 1 more were left out" in verify(folder / "said")
    build_index(write(tmp_path / "c.jsonl", ROWS), tmp_path / "i", processes=1)
    path = tmp_path / "i" / METADATA
    data = path.read_bytes()
    path.write_bytes(data.replace(b"2018", b"2019"))
    assert main(["verify", str(tmp_path / "i")]) == 1
    assert f"{METADATA} is not the file" in capsys.readouterr().err
    path.write_bytes(b"[" + data[1:])
    with pytest.raises(IndexingError, match=f"{METADATA} is damaged: .*first line is no metadata"):
        load_index(tmp_path / "i", verify="never")
    path.write_bytes(data)
    np.save(tmp_path / "i" / METADATA_OFFSETS, np.load(tmp_path / "i" / METADATA_OFFSETS)[1:])
    with pytest.raises(IndexingError, match=METADATA_OFFSETS):
        load_index(tmp_path / "i", verify="never")
    with pytest.raises(IndexingError, match=f"{METADATA} is of another corpus"):
        Corpus(tmp_path / "i")


def by_id(passages):
    return {passage["id"]: passage["metadata"] for passage in passages}


WANTED = {row["id"]: one for row, one in zip(ROWS, SAID, strict=True)}


@pytest.mark.parametrize("more", [{}, {"snippet": True}, {"max_characters": 3}, {"exclude_titles": ["Large"]}])
def test_a_search_tells_it_where_it_is_asked_for(http, more):
    asked = {"queries": ["rome river", "tiber"], "top_k": 4, **more}
    for _ in range(2):  # the second answer comes from the cache
        results = http.post("/v1/search", json={**asked, "metadata": True}).json()["results"]
        found = by_id(results[0])
        assert found == {name: WANTED[name] for name in found}
        assert len(found) == (3 if "exclude_titles" in more else 4)
        assert by_id(results[1]) == {"rome#0": SAID[0]}
    plain = http.post("/v1/search", json=asked).json()["results"]
    assert [[{name: value for name, value in hit.items() if name != "metadata"} for hit in hits] for hits in results] == plain


def test_documents_pages_and_a_passage_tell_it_where_it_is_asked_for(http):
    for path, body in (("/v1/documents", {"ids": ["rome"]}), ("/v1/open", {"id": "rome#1"})):
        passages = http.post(path, json={**body, "metadata": True}).json()["passages"]
        assert by_id(passages) == {name: WANTED[name] for name in ("rome#0", "rome#1")}
        assert http.post(path, json=body).json()["passages"] == bare(ROWS[:2])
    for name in ("rome%230", "alone", "large"):
        passage = http.get(f"/v1/passages/{name}?metadata=true").json()
        assert passage["metadata"] == WANTED[passage["id"]]
        assert "metadata" not in http.get(f"/v1/passages/{name}").json()
    wrong = http.get("/v1/passages/alone?metadata=<b>")
    assert (wrong.status_code, wrong.json()["reason"]) == (422, "format")
    assert "<b>" not in wrong.text


def test_what_a_corpus_says_is_json_and_nothing_else_in_every_answer(http):
    for answer in (
        http.post("/v1/search", json={"queries": ["hills"], "metadata": True}),
        http.post("/v1/documents", json={"title": "Rome", "metadata": True}),
        http.get("/v1/passages/rome%231?metadata=true"),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert HOSTILE in str(answer.json())
        assert "forged" not in [hit["id"] for hit in _dicts(answer.json()) if "id" in hit]
    assert "alert" not in http.get("/metrics").text


def _dicts(value):
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(inner)


def test_other_wire_formats_answer_byte_for_byte_as_without_it(http):
    for path, body in (
        ("/search", {"query": "river", "top_n": 3, "return_score": True}),
        ("/batch_search", {"query": ["river"], "top_n": 3}),
        ("/queries", {"queries": ["river"], "k": 3}),
        ("/retrieve", {"queries": ["river"], "topk": 3}),
        ("/retrieve", {"query": "river", "top_k": 3}),
    ):
        said, bare = (http.post(f"/indexes/{name}{path}", json=body) for name in ("said", "bare"))
        assert said.content == bare.content
        assert said.status_code == 200


def test_an_answer_holds_no_more_of_it_than_the_limit(http):
    queries = ["rome river"] * 4
    assert http.post("/v1/search", json={"queries": queries}).status_code == 200
    for index, status in (("said", 413), ("bare", 200)):
        answer = http.post("/v1/search", json={"queries": queries, "metadata": True, "index": index})
        assert answer.status_code == status
    refused = http.post("/v1/search", json={"queries": queries, "metadata": True}).json()
    assert refused["reason"] == "max_metadata_bytes"
    assert "the limit max_metadata_bytes is 200: ask for fewer passages" in refused["detail"]


def test_where_the_passages_are_elsewhere_metadata_is_refused(folder):
    with TestClient(create_app(Settings(index=folder / "said", retriever="nothing"))) as client:
        wait_ready(client)
        assert client.post("/v1/search", json={"queries": ["x"]}).status_code == 200
        refused = client.post("/v1/search", json={"queries": ["x"], "metadata": True})
        assert (refused.status_code, refused.json()["reason"]) == (501, "no_corpus")


@pytest.mark.parametrize(("answers", "told"), [("said", SAID[0]), ("bare", {}), ("gone", None)])
def test_it_is_the_answering_index_that_tells_it_when_the_index_is_replaced_meanwhile(folder, answers, told):
    old, new = (open_retriever(Settings(index=folder / name)) for name in ("said", "bare"))
    name = {"said": old.index_id, "bare": new.index_id}.get(answers, "gone")

    async def search(queries, k):
        service.opened = new
        return Answer(name, [[Hit("rome#0", "Rome", 1.0)]], [False], 0.0, 0.0)

    async def whole(_):
        pass

    service = SimpleNamespace(opened=old, search=search, settings=Settings(), refuse_changed=whole, lookup=None)
    request = SearchRequest(queries=["x"], metadata=True, max_characters=1)
    if told is None:
        with pytest.raises(Refused, match="replaced while this was answered") as refused:
            asyncio.run(V1(service).search(request))
        assert refused.value.status == 503
    else:
        (((hit,),)) = asyncio.run(V1(service).search(request))["results"]
        assert orjson.loads(orjson.dumps(hit["metadata"])) == told
