"""`/v1/open`: reading on around a passage, page by page."""

from __future__ import annotations

from itertools import takewhile

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.app import create_app
from rag_serving.lookup import Lookup, document_of, title_of
from rag_serving.retrievers import DummyRetriever, Opened
from rag_serving.retrievers.controls import Nothing
from rag_serving.settings import Settings
from tests.servers import app_over, wait_ready
from tests.unit.test_lookup import PASSAGES, names, write

# two documents of one title side by side, one without a title, one of two titles
ROWS = [
    *({"id": f"a/README.md#{i}", "contents": f"README\nOf a, {i}."} for i in range(5)),
    *({"id": f"b/README.md#{i}", "contents": f"README\nOf b, {i}."} for i in range(2)),
    *({"id": f"note-{i}", "contents": f"a line, {i}"} for i in range(3)),
    {"id": "alone", "contents": "a line"},
    *({"id": str(i), "contents": f'"Oslo"\nOf Oslo, {i}.'} for i in range(3)),
    {"id": "3", "contents": '"Rome"\nOf Rome.'},
]
DOCUMENTS = [range(0, 5), range(5, 7), range(7, 10), range(10, 11), range(11, 14), range(14, 15)]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    corpus = write(tmp_path_factory.mktemp("corpus"), ROWS)
    with TestClient(app_over(DummyRetriever([]), corpus=corpus, open_passages=2, max_top_k=6)) as client:
        wait_ready(client)
        yield client


def read(client, name, **more):
    answer = client.post("/v1/open", json={"id": name, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-index-id"] == answer.json()["index_id"] == "test-index"
    return answer.json()


@given(st.sampled_from(range(len(ROWS))), st.one_of(st.none(), st.integers(1, 6)))
def test_the_pages_of_a_document_are_its_passages_in_order_each_once(http, row, size):
    (document,) = (rows for rows in DOCUMENTS if row in rows)
    more = {} if size is None else {"size": size}
    pages = [read(http, ROWS[row]["id"], page=1, **more)]
    pages += [read(http, ROWS[row]["id"], page=page, **more) for page in range(2, pages[0]["pages"] + 1)]
    assert [passage for page in pages for passage in page["passages"]] == [ROWS[i] for i in document]
    assert [(page["page"], page["pages"]) for page in pages] == [(i + 1, len(pages)) for i in range(len(pages))]
    assert {len(page["passages"]) for page in pages[:-1]} <= {size or 2}


@given(st.sampled_from(ROWS), st.one_of(st.none(), st.integers(1, 6)))
def test_the_page_of_a_passage_holds_it_unless_another_is_asked_for(http, passage, size):
    found = read(http, passage["id"], **({} if size is None else {"size": size}))
    assert passage in found["passages"]
    assert (found["id"], found["title"]) == (passage["id"], title_of(passage["contents"]))
    assert found == read(http, passage["id"], page=found["page"], size=size)


@given(st.lists(st.tuples(names, names), min_size=1, max_size=12, unique_by=lambda pair: pair[0]))
def test_a_document_is_all_the_neighbours_that_share_a_passages_names(tmp_path_factory, pairs):
    passages = [{"id": name, "contents": contents} for name, contents in pairs]
    lookup = Lookup(write(tmp_path_factory.mktemp("c"), passages))
    named = [(title_of(contents), document_of(name)) for name, contents in pairs]
    for row, mine in enumerate(named):
        alike = [any(mine) and all(own in ("", its) for own, its in zip(mine, theirs, strict=True)) for theirs in named]
        start = row - len(list(takewhile(bool, reversed(alike[:row]))))
        stop = row + 1 + len(list(takewhile(bool, alike[row + 1 :])))
        assert lookup.around(row) == range(start, stop)


@pytest.mark.parametrize(
    ("body", "status", "reason", "told"),
    [
        ({"id": "no such"}, 404, "passage", "test-index has no passage with the id 'no such'"),
        ({"id": "note"}, 404, "passage", "'note'"),
        ({"id": "note-0", "page": 3}, 400, "page", "there is no page 3: with 2 passages a page, the document of 'note-0' has pages 1 to 2"),
        ({"id": "note-0", "page": 0}, 400, "page", "pages 1 to 2"),
        ({"id": "note-0", "page": -1, "size": 3}, 400, "page", "pages 1 to 1"),
        ({"id": "note-0", "size": 7}, 400, "max_top_k", "7 passages asked for; the limit max_top_k is 6"),
        ({"id": "note-0", "size": 0}, 400, "size", "give 1 to 6"),
        ({"page": 1}, 422, "format", "id"),
        ({"id": "note-0", "page": "last"}, 422, "format", "page"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused_with_the_reason(http, body, status, reason, told):
    answer = http.post("/v1/open", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert told in answer.json()["detail"]


def test_a_page_is_never_longer_than_max_top_k(tmp_path):
    with TestClient(app_over(DummyRetriever([]), corpus=write(tmp_path, ROWS), open_passages=5, max_top_k=3)) as client:
        wait_ready(client)
        assert len(read(client, "a/README.md#0")["passages"]) == 3


def test_whoever_reads_a_passage_or_a_document_is_told_the_index_too(http):
    assert http.get("/v1/passages/alone").headers["x-index-id"] == "test-index"
    assert http.post("/v1/documents", json={"title": "Oslo"}).headers["x-index-id"] == "test-index"


def test_a_retriever_without_passages_says_so_and_a_token_is_asked_for(tmp_path):
    with TestClient(app_over(DummyRetriever([]), tokens="s3cret")) as client:
        wait_ready(client)
        assert client.post("/v1/open", json={"id": "a"}).status_code == 401
        answer = client.post("/v1/open", json={"id": "a"}, headers={"authorization": "Bearer s3cret"})
        assert (answer.status_code, answer.json()["reason"]) == (501, "no_corpus")


def test_of_the_control_that_finds_nothing_every_id_is_unknown():
    with TestClient(create_app(Settings(), lambda settings, report: Opened(Nothing(), "i", "f", "nothing"))) as client:
        wait_ready(client)
        answer = client.post("/v1/open", json={"id": "a"})
        assert (answer.status_code, answer.json()["reason"]) == (404, "passage")


def test_what_is_opened_is_counted_under_its_path(http):
    read(http, "alone")
    assert 'rag_requests_total{path="/v1/open",status="200"}' in http.get("/metrics").text


def test_an_index_made_before_there_were_lookups_is_read_too(tmp_path):
    lookup = Lookup(write(tmp_path, PASSAGES))
    assert [lookup.around(row) for row in range(5)] == [range(2), range(2), range(2, 3), range(3, 4), range(4, 5)]
