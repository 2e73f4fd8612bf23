"""Clients written after each wire format, as its project's own client speaks it, driven against the real server."""

from __future__ import annotations

import json

import pytest
import requests

from rag_serving.indexing import build_index
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from tests.servers import serving

PASSAGES = ["Rome\nRome is the capital of Italy.", "Paris\nParis is the capital of France.", "Nice\nNice is a city in France."]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wire")
    lines = [json.dumps({"id": str(i), "contents": text}) for i, text in enumerate(PASSAGES)]
    (folder / "c.jsonl").write_text("\n".join(lines) + "\n")
    build_index(folder / "c.jsonl", folder / "i")
    with serving("--index", str(folder / "i"), "--tokens", "s3cret") as (address, _):
        yield address


@pytest.fixture(scope="module")
def session():
    with requests.Session() as http:
        http.headers["Authorization"] = "Bearer s3cret"
        yield http


def test_a_client_of_research(url, session):
    def batch_search(query: list[str], top_n: int) -> list[str]:
        response = session.post(f"{url}/batch_search", json={"query": query, "top_n": top_n})
        return ["\n\n".join(line["contents"] for line in item).strip() for item in response.json()]

    assert batch_search(["Italy", "France"], 2) == [PASSAGES[0], f"{PASSAGES[1]}\n\n{PASSAGES[2]}"]
    documents, scores = session.post(f"{url}/search", json={"query": "Italy", "top_n": 2, "return_score": True}).json()
    assert documents == [{"id": "0", "contents": PASSAGES[0]}]
    assert scores[0] > 0


def test_a_client_of_r1_searcher(url, session):
    response = session.post(f"{url}/queries", json={"queries": ["Italy", "nothing known"], "k": 3})
    result = response.json()
    assert result["queries"] == ["Italy", "nothing known"]
    docs = [
        " ".join(f"({i + 1}){doc}\n" for i, doc in enumerate(answers)) if answers else "None" for answers in result["answers"]
    ]
    assert docs == [f"(1){PASSAGES[0]}\n", "None"]


def test_a_client_of_search_r1(url, session):
    payload = {"queries": ["France"], "topk": 2, "return_scores": True}
    results = session.post(f"{url}/retrieve", json=payload).json()["result"]
    lines = []
    for index, item in enumerate(results[0]):
        content = item["document"]["contents"]
        title, text = content.split("\n")[0], "\n".join(content.split("\n")[1:])
        lines.append(f"Doc {index + 1}(Title: {title}) {text}\n")
    assert (
        "".join(lines) == "Doc 1(Title: Paris) Paris is the capital of France.\nDoc 2(Title: Nice) Nice is a city in France.\n"
    )


def test_a_client_of_skyrl_gym(url, session):
    payload = {"query": "France", "topk": 2, "return_scores": True}
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    answer = session.post(f"{url}/retrieve", headers=headers, json=payload).json()
    pretty = []
    for retrieval in answer.get("result", []):
        lines = [f"Doc {index + 1}: {item['document']['contents'].strip()}\n" for index, item in enumerate(retrieval)]
        pretty.append("".join(lines))
    assert pretty == [f"Doc 1: {PASSAGES[1]}\nDoc 2: {PASSAGES[2]}\n"]


def test_a_client_of_slime_reads_documents_without_scores(url, session):
    payload = {"queries": ["Italy"], "topk": 3, "return_scores": False}
    found = session.post(f"{url}/retrieve", json=payload).json().get("result", [[]])[0]
    assert [item.get("contents", "") for item in found] == [PASSAGES[0]]


def test_a_client_of_rllm(url, session):
    answer = session.post(f"{url}/retrieve", json={"query": "Italy", "top_k": 1}).json()
    assert [(hit["id"], hit["content"]) for hit in answer.get("results", [])] == [("0", PASSAGES[0])]
    assert answer["results"][0]["score"] > 0


def test_a_client_of_v1_reads_on(url, session):
    found = session.post(f"{url}/v1/search", json={"queries": ["Italy"], "top_k": 1}).json()["results"][0][0]
    passage = session.get(f"{url}/v1/passages/{found['id']}").json()
    assert (passage["contents"], passage["position"], passage["total"]) == (PASSAGES[0], 0, 1)
    assert session.post(f"{url}/v1/documents", json={"title": "Rome"}).json()["passages"][0]["id"] == "0"


def test_a_client_of_v1(url, session):
    answer = session.post(f"{url}/v1/search", json={"queries": ["Italy"], "top_k": 1}).json()
    assert answer["results"][0][0]["contents"] == PASSAGES[0]
    assert answer["index_id"] == session.get(f"{url}/readyz").json()["index_id"]


async def test_our_own_client_speaks_it_with_its_token(url):
    async with RetrievalClient(RetrievalSettings(url, token="s3cret", deadline_s=10)) as client:
        assert [[passage.id for passage in found] for found in await client.search(["Italy", "France"], 2)] == [
            ["0"],
            ["1", "2"],
        ]


def test_the_openapi_names_every_path_and_its_problems(url, session):
    document = session.get(f"{url}/openapi.json").json()
    for path in ("/search", "/batch_search", "/queries", "/retrieve", "/v1/search", "/v1/documents", "/v1/open"):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert {"200", "400", "401", "413", "422", "429", "502", "503"} <= set(operation["responses"])
    assert {"/livez", "/readyz", "/health", "/metrics"} <= set(document["paths"])
