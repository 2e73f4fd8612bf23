"""Several named indexes in one process: who answers, what is refused, what is told apart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from rag_serving import ServingError
from rag_serving.app import create_app
from rag_serving.cli import main
from rag_serving.corpus import Corpus
from rag_serving.indexing import build_index
from rag_serving.retrievers import DummyRetriever, Opened
from rag_serving.settings import Settings, load_settings
from research_rl.errors import ConfigError, WrongServiceError
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from tests.servers import wait_ready

NAMES = {"wiki": Path("w"), "private": Path("p")}
SEARCHES = [
    ("/search", {"query": "passage"}), ("/batch_search", {"query": ["passage"]}), ("/queries", {"queries": ["passage"]}),
    ("/retrieve", {"queries": ["passage"]}), ("/v1/search", {"queries": ["passage"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """An index per name, whose passage tells it."""
    found = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        (folder / "c.jsonl").write_text(f'{{"id": "1", "contents": "{name}\\npassage of {name}"}}\n')
        build_index(folder / "c.jsonl", folder / "index", processes=1)
        found[name] = Corpus(folder / "index")
    return found


@pytest.fixture(scope="module")
def http(corpora):
    def load(settings, report):
        (name,) = settings.index
        return Opened(DummyRetriever([("1", f"{name}\npassage of {name}")]), f"{name}-id", name, "bm25", corpora[name])

    with TestClient(create_app(Settings(index=NAMES, tokens=["secret"]), load)) as client:
        client.headers["authorization"] = "Bearer secret"
        wait_ready(client)
        yield client


@pytest.mark.parametrize(("path", "body"), SEARCHES)
def test_every_wire_format_searches_the_default_or_the_index_that_its_path_names(http, path, body):
    for prefix, name in (("", "wiki"), ("/indexes/wiki", "wiki"), ("/indexes/private", "private")):
        answer = http.post(f"{prefix}{path}", json=body)
        assert answer.headers["x-index-id"] == f"{name}-id"
        assert f"passage of {name}" in answer.text


def test_inside_another_application_paths_are_those_below_its_mount(http):
    app = FastAPI()
    app.mount("/retrieval", http.app)
    client = TestClient(app)
    allowed = {"authorization": "Bearer secret"}
    for path in ("", "/indexes/private"):
        for open_ in ("/readyz", "/"):
            assert client.get(f"/retrieval{path}{open_}").status_code == 200
        assert client.post(f"/retrieval{path}/search", json={"query": "passage"}).status_code == 401
        assert client.get(f"/retrieval{path}/v1/passages/1").status_code == 401
        name = "private" if path else "wiki"
        assert client.get(f"/retrieval{path}/v1/passages/1", headers=allowed).json()["title"] == name
        answer = client.post(f"/retrieval{path}/search", json={"query": "passage"}, headers=allowed)
        assert answer.headers["x-index-id"] == f"{name}-id"
    assert client.get("/retrieval/indexes/nope/readyz").json()["reason"] == "index"
    assert 'path="/retrieval' not in client.get("/retrieval/metrics", headers=allowed).text


def test_our_own_requests_may_name_the_index_themselves(http):
    for path, body in (("/v1/search", {"queries": ["passage"]}), ("/v1/open", {"id": "1"}), ("/v1/documents", {"ids": ["1"]})):
        for name in NAMES:
            answer = http.post(path, json={**body, "index": name})
            assert (answer.json()["index_id"], answer.headers["x-index-id"]) == (f"{name}-id", f"{name}-id")
            assert f"passage of {name}" in answer.text
    assert http.get("/v1/passages/1", params={"index": "private"}).json()["title"] == "private"
    assert http.get("/indexes/private/v1/passages/1").json()["title"] == "private"


def test_the_pages_that_document_an_index_ask_that_index(http):
    assert "'/indexes/private/openapi.json'" in http.get("/indexes/private/docs").text
    assert http.get("/indexes/private/openapi.json").json()["servers"] == [{"url": "/indexes/private"}]
    assert "servers" not in http.get("/openapi.json").json()


def test_the_same_query_is_cached_for_each_index_by_itself(http):
    asked = [{"queries": ["passage of both"], "index": name} for name in (*NAMES, *NAMES)]
    assert [http.post("/v1/search", json=body).json()["cached"] for body in asked] == [[False], [False], [True], [True]]


@pytest.mark.parametrize("name", ["nope", "", "..", "../etc", "%2e%2e", "wiki%00", "Wiki", "x" * 5_000, "\U0001f600"])
def test_an_unknown_index_is_refused_and_the_valid_ones_are_named(http, name):
    for answer in (
        http.post("/v1/search", json={"queries": ["passage"], "index": name}),
        http.post("/v1/open", json={"id": "1", "index": name}),
        http.get("/v1/passages/1", params={"index": name}),
    ):
        assert (answer.status_code, answer.json()["reason"]) == (404, "index")
        assert "there are: wiki, private" in answer.json()["detail"]
        assert len(answer.text) < 1_000


@pytest.mark.parametrize("path", ["/search", "/readyz", "/livez", "/health", "/metrics", "/nowhere", "/indexes/wiki/search"])
def test_under_the_path_of_an_unknown_index_there_is_nothing(http, path):
    assert http.post(f"/indexes/nope{path}", json={"query": "passage"}).json()["reason"] == "index"
    assert http.post(f"/indexes/wiki/indexes/private{path}", json={"query": "passage"}).status_code == 404


def test_path_and_body_must_not_name_different_indexes(http):
    body = {"queries": ["passage"], "index": "private"}
    answer = http.post("/indexes/wiki/v1/search", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "index")
    assert http.post("/indexes/private/v1/search", json=body).status_code == 200


def test_a_token_is_asked_for_under_every_prefix(http):
    for path in ("/search", "/v1/search", "/metrics", "/indexes/private/search"):
        for name in ("private", "nope"):
            answer = http.post(f"/indexes/{name}{path}", json={"query": "passage"}, headers={"authorization": "Bearer other"})
            assert answer.status_code == 401


def test_strangers_cannot_fill_the_metrics_with_names_of_indexes(http):
    for number in range(3):
        http.post(f"/indexes/stranger{number}/search", json={"query": "passage"})
        http.post("/v1/search", json={"queries": ["passage"], "index": f"stranger{number}"})
    http.post("/indexes/private/search", json={"query": "passage"})
    told = http.get("/metrics").text
    assert "stranger" not in told
    assert 'rag_ready{index="wiki"} 1.0' in told
    assert 'rag_queries_total{answered_by="engine",index="private"}' in told
    assert 'rag_index{index="private",index_id="private-id"} 1.0' in told


def test_health_and_readiness_tell_of_each_index_and_under_a_prefix_of_one(http):
    assert http.get("/health").json() == {
        "status": "healthy", "retrievers": {"total": 2, "available": 2}, "indexes": {"wiki": "healthy", "private": "healthy"},
    }  # fmt: skip
    ready = http.get("/readyz").json()
    assert ready["index_id"] == ready["indexes"]["wiki"]["index_id"] == "wiki-id"
    assert http.get("/indexes/private/readyz").json()["index_id"] == "private-id"
    assert http.get("/indexes/private/health").json()["retrievers"]["total"] == 1


def test_each_index_is_searched_by_a_thread_of_its_own_and_reloaded():
    threads, loads = {"wiki": set(), "private": set()}, {"wiki": 0, "private": 0}

    class Noting(DummyRetriever):
        def __init__(self, name):
            super().__init__([("1", "passage")])
            self.name = name

        def search(self, queries, k):
            threads[self.name].add(threading.get_ident())
            return super().search(queries, k)

    def load(settings, report):
        (name,) = settings.index
        loads[name] += 1
        if name == "wiki" and loads[name] > 1:
            raise ServingError("damaged meanwhile")
        return Opened(Noting(name), f"{name}-{loads[name]}", name)

    with TestClient(create_app(Settings(index=NAMES), load)) as client:
        wait_ready(client)

        def serving():
            return [
                client.post("/v1/search", json={"queries": ["passage"], "index": name}).json()["index_id"] for name in NAMES
            ]

        assert serving() == ["wiki-1", "private-1"]
        client.app.state.reload().result(10)
        assert serving() == ["wiki-1", "private-2"]  # what cannot be loaded again leaves the others alone
    assert [len(found) for found in threads.values()] == [1, 1]
    assert not threads["wiki"] & threads["private"]


class Hanging(DummyRetriever):
    """Answers one query late: when `gate` is set."""

    def __init__(self, gate, query):
        super().__init__([("1", "passage")])
        self.gate, self.query = gate, query

    def search(self, queries, k):
        if self.query in queries:
            self.gate.wait(20)
        return super().search(queries, k)


def test_an_engine_that_hangs_stops_no_other_index_from_answering_or_being_loaded_again():
    gate, loads = threading.Event(), {"wiki": 0, "private": 0}

    def load(settings, report):
        (name,) = settings.index
        loads[name] += 1
        return Opened(Hanging(gate, "hang" if name == "wiki" else ""), f"{name}-{loads[name]}", name)

    with TestClient(create_app(Settings(index=NAMES, engine_timeout_s=0.2), load)) as client:
        wait_ready(client)
        try:
            assert client.post("/search", json={"query": "hang"}).status_code == 504
            assert client.get("/indexes/wiki/readyz").status_code == 503
            assert client.get("/indexes/private/readyz").status_code == 200
            reloaded = client.app.state.reload()
            for _ in range(500):
                answer = client.post("/indexes/private/search", json={"query": "passage"})
                assert (answer.status_code, len(answer.json())) == (200, 1)
                if answer.headers["x-index-id"] == "private-2":
                    break
                time.sleep(0.01)
            assert answer.headers["x-index-id"] == "private-2"
        finally:
            gate.set()
        reloaded.result(20)
        assert client.post("/search", json={"query": "passage"}).headers["x-index-id"] == "wiki-2"


@pytest.mark.parametrize("hangs_in", ["load", "warm_up", "close"])
def test_an_index_that_hangs_while_it_is_loaded_again_holds_up_no_other_now_or_later(hangs_in):
    gate, loads = threading.Event(), {"wiki": 0, "private": 0}

    class Stuck(DummyRetriever):
        def warm_up(self):
            if hangs_in == "warm_up" and loads["wiki"] > 1:
                gate.wait(20)

        def close(self):
            if hangs_in == "close":
                gate.wait(20)

    def load(settings, report):
        (name,) = settings.index
        loads[name] += 1
        number = loads[name]
        if name == "wiki" and number > 1 and hangs_in == "load":
            gate.wait(20)
        return Opened((Stuck if name == "wiki" else DummyRetriever)([("1", "passage")]), f"{name}-{number}", name)

    def served(client, name):
        return client.get(f"/indexes/{name}/readyz").json()["index_id"]

    with TestClient(create_app(Settings(index=NAMES), load)) as client:
        wait_ready(client)
        reloads = []
        try:
            for wanted in ("private-2", "private-3"):
                reloads.append(client.app.state.reload())
                for _ in range(500):
                    if served(client, "private") == wanted:
                        break
                    time.sleep(0.01)
                assert served(client, "private") == wanted
            assert served(client, "wiki") == ("wiki-2" if hangs_in == "close" else "wiki-1")
        finally:
            gate.set()
        for reload in reloads:
            reload.result(20)
        assert (served(client, "wiki"), served(client, "private")) == ("wiki-3", "private-3")


def test_an_engine_that_hangs_while_it_warms_up_stops_no_other_index_from_being_loaded():
    gate = threading.Event()

    def load(settings, report):
        (name,) = settings.index
        return Opened(Hanging(gate, "warm up" if name == "wiki" else ""), name, name)

    with TestClient(create_app(Settings(index=NAMES), load)) as client:
        try:
            wait_ready(client, "/indexes/private/readyz", seconds=5)
            assert client.post("/indexes/private/search", json={"query": "passage"}).status_code == 200
            assert client.get("/indexes/wiki/readyz").json()["stage"] == "warming up"
        finally:
            gate.set()
        wait_ready(client)


def test_an_index_that_is_loaded_answers_while_another_one_is_loading():
    gate = threading.Event()

    def load(settings, report):
        if "private" in settings.index:
            gate.wait(10)
        return Opened(DummyRetriever([("1", "passage")]), "w", "w")

    with TestClient(create_app(Settings(index=NAMES, engine_timeout_s=0.2), load)) as client:
        wait_ready(client, "/indexes/wiki/readyz", seconds=5)
        assert client.post("/search", json={"query": "passage"}).status_code == 200
        assert client.get("/readyz").json()["indexes"]["private"]["status"] == "loading"
        gate.set()
        wait_ready(client)


def test_two_indexes_are_loaded_at_once_and_no_third():
    both, gate, loading, most = threading.Barrier(2), threading.Event(), set(), []

    def load(settings, report):
        (name,) = settings.index
        loading.add(name)
        most.append(len(loading))
        report(f"loading {name}")
        if name != "third":
            both.wait(10)  # ends only if both are here
            gate.wait(10)
        loading.discard(name)
        return Opened(DummyRetriever([("1", "passage")]), name, name)

    names = {"first": "a", "second": "b", "third": "c"}
    with TestClient(create_app(Settings(index=names), load)) as client:
        while len(loading) < 2 or both.n_waiting:
            time.sleep(0.01)
        told = client.get("/readyz").json()["indexes"]
        assert [told[name]["stage"] for name in names] == ["loading first", "loading second", "starting"]
        gate.set()
        wait_ready(client)
    assert max(most) == 2
    assert len(most) == 3


def test_an_index_that_cannot_be_loaded_stops_no_other_and_ends_the_start_though_another_hangs(caplog):
    gate, failed, loaded = threading.Event(), threading.Event(), []

    def load(settings, report):
        (name,) = settings.index
        if name == "hangs":
            gate.wait(10)
        if name == "fails":
            raise ServingError("no such index")
        loaded.append(name)
        return Opened(DummyRetriever([("1", "passage")]), name, name)

    names = {"hangs": "a", "fails": "b", "fine": "c"}
    with TestClient(create_app(Settings(index=names), load, on_failure=failed.set)) as client:
        assert failed.wait(5)
        wait_ready(client, "/indexes/fine/readyz", seconds=5)
        told = client.get("/readyz").json()["indexes"]
        assert [told[name]["status"] for name in names] == ["loading", "failed", "ready"]
        assert loaded == ["fine"]
        gate.set()
    assert "index fails: the index could not be loaded: no such index" in caplog.text


def test_a_server_that_ends_while_it_loads_has_not_failed():
    gate, failed, loading = threading.Event(), threading.Event(), threading.Event()

    def load(settings, report):
        loading.set()
        gate.wait(10)
        return Opened(DummyRetriever([("1", "passage")]), "w", "w")

    app = create_app(Settings(index=NAMES), load, on_failure=failed.set)
    with TestClient(app):
        assert loading.wait(5)
    gate.set()
    assert not failed.wait(0.2)


def test_one_index_that_cannot_be_loaded_ends_the_start_with_its_name_in_health():
    failed = threading.Event()

    def load(settings, report):
        if "private" in settings.index:
            raise ServingError("no such index")
        return Opened(DummyRetriever([("1", "passage")]), "w", "w")

    with TestClient(create_app(Settings(index=NAMES), load, on_failure=failed.set)) as client:
        assert failed.wait(5)
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["indexes"]["private"]) == (503, "failed")


@pytest.mark.parametrize(
    ("given", "names", "directory"),
    [
        ("dir", ["default"], "dir"),
        (["wiki=a", "private=b"], ["wiki", "private"], "a"),
        (["wiki=a", "b"], ["default", "wiki"], "b"),
        ("wiki=a,private=b,c", ["wiki", "private"], "a"),
        ("a,b=c", ["default", "b"], "a"),
        ("./a=b", ["default"], "./a=b"),
        ({"wiki": "a", "default": "b"}, ["default", "wiki"], "b"),
        (None, ["default"], None),
    ],
)
def test_indexes_are_given_by_name_and_the_first_or_the_unnamed_is_the_default(given, names, directory):
    settings = Settings(index=given)
    assert settings.names == names
    assert settings.directory == (directory and Path(directory))


def test_the_memory_for_answers_is_shared_by_the_indexes():
    settings = Settings(index=NAMES, cache_mb=100)
    assert sum(settings.of(name).cache_mb for name in NAMES) == 100


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (["a", "b"], "two indexes are called 'default'"),
        (["w=a", "w=b"], "two indexes are called 'w'"),
        ({"../x": "a"}, "cannot be called"),
    ],
)
def test_names_that_cannot_be_are_refused(index, message):
    with pytest.raises(ServingError, match=message):
        load_settings({"index": index})


def test_the_flag_can_be_repeated_and_the_environment_separates_by_commas(capsys, monkeypatch):
    monkeypatch.setenv("RAG_SERVING_INDEX", "wiki=/w,private=/p")
    assert main(["config"]) == 0
    assert '{"wiki": "/w", "private": "/p"}' in capsys.readouterr().out
    assert main(["config", "--index", "a=/a", "--index", "/b"]) == 0
    assert '{"default": "/b", "a": "/a"}' in capsys.readouterr().out


def test_several_indexes_are_not_for_a_retriever_that_has_none():
    with pytest.raises(ServingError, match="retriever web searches no index of ours"):
        load_settings({"retriever": "web", "web_key": "k", "index": ["a=a", "b=b"]})


async def test_the_training_client_searches_and_opens_in_the_index_of_its_settings(http):
    def network(request):
        answer = http.request(request.method, request.url.path, content=request.content)
        return httpx.Response(
            answer.status_code, content=answer.content, headers={"x-index-id": answer.headers.get("x-index-id", "")}
        )

    settings = RetrievalSettings("http://test:1/", index="private")
    async with RetrievalClient(settings, transport=httpx.MockTransport(network)) as client:
        assert (await client.search(["passage"], 1))[0][0].contents == "private\npassage of private"
        opened = await client.open("1")
        assert opened is not None
        assert opened.passages[0].contents == "private\npassage of private"
    settings = RetrievalSettings("http://test:1", index="nope")
    async with RetrievalClient(settings, transport=httpx.MockTransport(network)) as client:
        with pytest.raises(WrongServiceError, match="there are: wiki, private"):
            await client.search(["passage"], 1)


@pytest.mark.parametrize("name", ["../admin", 2018])
def test_the_training_client_refuses_a_name_that_is_none(name):
    with pytest.raises(ConfigError, match=r"retrieval\.index"):
        RetrievalSettings("http://test:1", index=name)
