"""Large answers are built outside of the event loop, and are the same answers."""

from __future__ import annotations

import math
import threading

import httpx
import orjson
import pytest
from fastapi.testclient import TestClient

from rag_serving import building, snippets, wire
from rag_serving.building import COPIED_US, DECODED_US, EXCLUDED_US, LONG_US, SNIPPET_US, aside, built
from rag_serving.retrievers.base import DummyRetriever, Hit
from rag_serving.snippets import Exclusion
from tests.servers import app_over, in_thread, wait_ready

PASSAGES = [(str(i), f"Page {i}\nword {i}") for i in range(1_000)]
QUERIES = ["word", "nothing", "word 7", "page 99"]
REQUESTS = [
    ("/search", {"query": "word", "top_n": 9, "return_score": True}),
    ("/batch_search", {"query": QUERIES, "top_n": 9}),
    ("/batch_search", {"query": QUERIES, "top_n": 9, "return_score": True}),
    ("/queries", {"queries": QUERIES, "k": 9}),
    ("/retrieve", {"queries": QUERIES, "topk": 9}),
    ("/retrieve", {"queries": QUERIES, "topk": 9, "return_scores": True}),
    ("/v1/search", {"queries": QUERIES, "top_k": 9}),
    ("/v1/search", {"queries": QUERIES, "top_k": 9, "snippet": 5, "max_characters": 4, "exclude_titles": ["Page 3"]}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_an_answer_is_the_same_wherever_it_is_built(monkeypatch, path, body):
    with TestClient(app_over(DummyRetriever(PASSAGES))) as client:
        wait_ready(client)
        told = []
        for long_us in (math.inf, 0):
            monkeypatch.setattr(building, "LONG_US", long_us)
            answer = client.post(path, json=body).json()
            told.append(
                {key: answer[key] for key in ("results", "missing") if key in answer} if path == "/v1/search" else answer
            )
        assert told[0] == told[1]
        assert "word 7" in str(told[0]) or "snippet" in body


@pytest.mark.parametrize(
    ("path", "body", "where", "name"),
    [
        ("/batch_search", {"query": ["word"] * 7, "top_n": 1_000}, wire, "documents"),
        ("/queries", {"queries": ["word", "page"], "k": 1_000}, wire, "texts"),
        ("/retrieve", {"queries": ["word"] * 7, "topk": 1_000, "return_scores": True}, wire, "scored_documents"),
        ("/v1/search", {"queries": ["word"], "top_k": 200, "snippet": True}, snippets, "snippet"),
        ("/v1/search", {"queries": ["word"], "top_k": 400, "exclude_ids": ["3"]}, Exclusion, "keeps"),
    ],
)
def test_another_is_answered_while_a_large_answer_is_built(monkeypatch, path, body, where, name):
    begun, go_on, form = threading.Event(), threading.Event(), getattr(where, name)

    def held(*arguments):
        begun.set()
        assert go_on.wait(20)
        return form(*arguments)

    monkeypatch.setattr(where, name, held)
    with in_thread(DummyRetriever(PASSAGES)) as url, httpx.Client(base_url=url, timeout=30) as client:
        answers = []
        large = threading.Thread(target=lambda: answers.append(httpx.post(url + path, json=body, timeout=30)))
        large.start()
        assert begun.wait(20)
        assert client.get("/health", timeout=10).status_code == 200
        go_on.set()
        large.join()
    assert answers[0].status_code == 200


async def test_only_what_takes_long_goes_to_a_thread():
    def where(*_):
        return threading.get_ident()

    here = threading.get_ident()
    for each_us in (COPIED_US, DECODED_US, EXCLUDED_US, SNIPPET_US):
        few = int(LONG_US / each_us) - 1
        assert await aside(where, few, each_us) == here
        assert await aside(where, few + 2, each_us) != here
        hits = [Hit("1", "text", 1.0)]
        assert await built(where, each_us, [hits * few]) == [here]
        assert orjson.loads(orjson.dumps(await built(where, each_us, [hits, hits * (few + 2)]))) != [here, here]


async def test_what_stands_beside_a_query_stays_with_it(monkeypatch):
    hits = [[Hit(str(i), "text", 1.0)] for i in range(3)]
    for long_us in (math.inf, 0):
        monkeypatch.setattr(building, "LONG_US", long_us)
        made = await built(lambda found, query: [query, found[0].id], 1, hits, ["a", "b", "c"])
        assert orjson.loads(orjson.dumps(made)) == [["a", "0"], ["b", "1"], ["c", "2"]]
