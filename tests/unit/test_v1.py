"""`/v1/…`: what is left out, what is shown of a passage, reading on; and the page at `/`."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

from rag_serving.retrievers import DummyRetriever, Hit
from rag_serving.snippets import Exclusion, snippet
from rag_serving.wire_v1 import MAX_EXCLUDED
from tests.servers import app_over, wait_ready
from tests.unit.test_lookup import PASSAGES, write

MANY = [(f"page-{i // 3}-{i % 3}", f"Page {i // 3}\nword {i}") for i in range(120)]


@pytest.fixture(scope="module")
def http():
    with TestClient(app_over(DummyRetriever(MANY), max_top_k=100)) as client:
        wait_ready(client)
        yield client


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    corpus = write(tmp_path_factory.mktemp("corpus"), PASSAGES)
    with TestClient(app_over(DummyRetriever([]), corpus=corpus, max_top_k=2, max_queries=3)) as client:
        wait_ready(client)
        yield client


def search(client, **more):
    answer = client.post("/v1/search", json={"queries": ["word"], "top_k": 3, **more}).json()
    return [hit["id"] for hit in answer["results"][0]], answer


def test_titles_ids_and_documents_are_left_out_and_k_are_found_all_the_same(http):
    assert search(http)[0] == ["page-0-0", "page-0-1", "page-0-2"]
    assert search(http, exclude_titles=['"Page 0"'])[0] == ["page-1-0", "page-1-1", "page-1-2"]
    assert search(http, exclude_ids=["page-0"])[0] == ["page-1-0", "page-1-1", "page-1-2"]
    assert search(http, exclude_ids=["page-0-0", "page-1"])[0] == ["page-0-1", "page-0-2", "page-2-0"]
    found, answer = search(http, exclude_ids=["page-0*", "page-1*"])
    assert found == ["page-2-0", "page-2-1", "page-2-2"]
    assert answer["missing"] == [0]


def test_a_documents_id_does_not_leave_out_another_that_begins_so(http):
    found, _ = search(http, exclude_ids=["page-1"], top_k=100)
    assert "page-1-0" not in found
    assert {"page-10-0", "page-11-0"} <= set(found)


def test_further_hits_are_looked_for_up_to_a_bound_and_what_is_missing_is_told(http):
    found, answer = search(http, exclude_titles=[f"Page {i}" for i in range(20)])  # the first 60 hits
    assert (found, answer["missing"], answer["excluded"]) == (["page-20-0", "page-20-1", "page-20-2"], [0], [60])
    found, answer = search(http, exclude_ids=["page*"])
    assert (found, answer["missing"], answer["excluded"]) == ([], [3], [100])  # max_top_k


def test_what_is_left_out_may_be_much_but_not_without_end(http):
    for name in ("exclude_ids", "exclude_titles"):
        most = [f"none{i}*" for i in range(MAX_EXCLUDED)]
        assert search(http, **{name: most})[0] == ["page-0-0", "page-0-1", "page-0-2"]
        answer = http.post("/v1/search", json={"queries": ["word"], name: [*most, "one more"]})
        assert (answer.status_code, answer.json()["reason"]) == (422, "format")
        assert name in answer.json()["detail"]


@given(st.lists(st.text("ab*", max_size=4), max_size=5), st.text("ab*", max_size=5))
def test_an_id_is_left_out_by_any_beginning_of_it(names, id):
    beginnings = tuple(name[:-1] for name in names if name.endswith("*"))
    left_out = Exclusion([], [name for name in names if name.endswith("*")])
    assert left_out.keeps(Hit(id, "text", 1.0)) == (not id.startswith(beginnings))


@pytest.mark.parametrize("start", [3, 2**63, 10**4_000])
def test_a_place_beyond_the_end_of_a_document_is_no_passages(reading, start):
    answer = reading.post("/v1/documents", json={"ids": ["rome"], "from": start, "to": start + 2})
    assert (answer.status_code, answer.json()["passages"]) == (200, [])


def test_without_exclusions_nothing_is_told_of_them(http):
    assert not {"excluded", "missing"} & set(search(http)[1])


def test_contents_are_cut_and_snippets_added_only_where_asked(http):
    answer = search(http, max_characters=4, snippet=True)[1]
    assert answer["results"][0][0] == {"id": "page-0-0", "contents": "Page", "score": 1.0, "snippet": "word 0"}
    assert "snippet" not in search(http)[1]["results"][0][0]
    assert search(http, snippet=4)[1]["results"][0][0]["snippet"] == "word"


def test_a_snippet_is_where_most_words_of_the_query_are():
    text = "Rome\n" + "nothing here. " * 30 + "The Tiber flows through the capital of Italy. " + "nothing there. " * 30
    assert "Tiber flows through the capital" in snippet("Which river, the Tiber, flows in Italy's capital?", text, 80)
    assert snippet("unheard of", text, 20) == "nothing here."


@example("b", "a" * 30, 5)
@example("aaaaaa", "b aaaaaa", 5)
@given(st.text(alphabet="ab c", max_size=20), st.text(alphabet="ab c\n.é", max_size=80), st.integers(1, 30))
def test_a_snippet_is_a_part_of_the_passage_and_no_longer_than_asked(query, contents, characters):
    found = snippet(query, contents, characters)
    assert found in contents
    assert len(found) <= characters
    assert found or not contents.strip()


def test_a_passage_is_read_by_its_id_with_its_place_in_the_document(reading):
    assert reading.get("/v1/passages/rome%231").json() == {**PASSAGES[1], "title": "Rome", "position": 1, "total": 3}
    assert reading.get("/v1/passages/rome%232").json()["position"] == 2
    assert reading.get("/v1/passages/alone").json() == {**PASSAGES[2], "title": "", "position": 0, "total": 1}
    unknown = reading.get("/v1/passages/no/such")
    assert (unknown.status_code, unknown.json()["reason"]) == (404, "passage")
    assert "test-index has no passage with the id 'no/such'" in unknown.json()["detail"]


def ids(answer):
    return [passage["id"] for passage in answer.json()["passages"]]


def test_a_document_is_read_in_the_order_of_the_corpus_from_passage_to_passage(reading):
    def read(**body):
        return reading.post("/v1/documents", json=body)

    assert ids(read(title="Rome")) == ["rome#0", "rome#1"]  # max_top_k
    assert read(title="Rome").json()["total"] == 3
    assert ids(read(title="Rome", **{"from": 1, "to": 3})) == ["rome#1", "rome#2"]
    assert ids(read(title="Rome", **{"from": 3})) == ids(read(title="Rome", **{"from": 1, "to": 0})) == []
    assert ids(read(ids=["rome#2", "nice", "alone"])) == ["alone", "nice-0"]
    assert read(ids=["rome", "rome#1"]).json()["total"] == 3  # each once


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"title": "rome"}, 404, "title"),
        ({"ids": ["alone", "rom"]}, 404, "passage"),
        ({"title": "Rome", "from": 0, "to": 3}, 400, "max_top_k"),
        ({"ids": ["alone"] * 4}, 413, "max_queries"),
        ({"title": "Rome", "ids": ["alone"]}, 422, "format"),
        ({}, 422, "format"),
        ({"title": "Rome", "from": -1}, 422, "format"),
    ],
)
def test_documents_that_cannot_be_read_are_refused_with_the_reason(reading, body, status, reason):
    answer = reading.post("/v1/documents", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


def test_a_retriever_without_a_corpus_says_so(http):
    for answer in (http.get("/v1/passages/page-0-0"), http.post("/v1/documents", json={"title": "Page 0"})):
        assert (answer.status_code, answer.json()["reason"]) == (501, "no_corpus")


def test_the_page_is_open_while_what_it_asks_is_not():
    with TestClient(app_over(DummyRetriever(MANY), tokens="s3cret")) as client:
        wait_ready(client)
        page = client.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert '<body data-tokens="yes">' in page.text
        assert client.get("/v1/passages/page-0-0").status_code == 401


def test_the_pages_policy_lets_only_its_own_script_and_style_run(http):
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|localStorage|https?://| on\w+=| style=", page.text)
    assert '<body data-tokens="no">' in page.text


def test_the_state_names_the_engine(reading):
    assert json.loads(reading.get("/readyz").content)["engine"] == "bm25"
