"""The application over a dummy retriever: wire formats, refusals, readiness, operations."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import weakref

import pytest
from fastapi.testclient import TestClient

from rag_serving import ServingError
from rag_serving.app import create_app
from rag_serving.ending import Ending
from rag_serving.operations import MOST_BODIES, Guard
from rag_serving.retrievers import DummyRetriever, Opened, Retriever
from rag_serving.settings import Settings
from tests.servers import app_over, wait_ready

PASSAGES = [("1", "Rome\nRome is in Italy."), ("2", "Paris\nParis is in France."), ("3", "Nice\nNice is in France.")]
PARIS = {"id": "2", "contents": "Paris\nParis is in France."}


@pytest.fixture(scope="module")
def http():
    with TestClient(app_over(DummyRetriever(PASSAGES))) as client:
        wait_ready(client)
        yield client


def test_research_search_answers_documents_or_documents_with_scores(http):
    body = {"query": "france", "top_n": 1}
    assert http.post("/search", json=body).json() == [PARIS]
    assert http.post("/search", json={**body, "return_score": True}).json() == [[PARIS], [1.0]]


def test_research_batch_search_answers_one_list_per_query_in_order(http):
    answer = http.post("/batch_search", json={"query": ["france", "italy", "nowhere"], "top_n": 5}).json()
    assert [[doc["id"] for doc in documents] for documents in answer] == [["2", "3"], ["1"], []]
    documents, scores = http.post("/batch_search", json={"query": ["france", "x"], "top_n": 5, "return_score": True}).json()
    assert [len(d) for d in documents] == [len(s) for s in scores] == [2, 0]


def test_r1_searcher_queries_answers_texts(http):
    answer = http.post("/queries", json={"queries": ["france", "italy"], "k": 1}).json()
    assert answer == {"queries": ["france", "italy"], "answers": [[PARIS["contents"]], ["Rome\nRome is in Italy."]]}


@pytest.mark.parametrize("topk", [{"topk": 1}, {"topk": None}, {}])
def test_search_r1_retrieve_nests_documents_and_takes_no_topk(http, topk):
    result = http.post("/retrieve", json={"queries": ["france"], "return_scores": True, **topk}).json()["result"]
    assert result[0][0] == {"document": PARIS, "score": 1.0}
    assert len(result[0]) == (1 if topk.get("topk") else 2)
    assert http.post("/retrieve", json={"queries": ["france"], **topk}).json()["result"][0][0] == PARIS


def test_v1_tells_request_index_scores_timings_and_what_was_cached(http):
    body = {"queries": ["france once", "france"], "top_k": 2}
    answer = http.post("/v1/search", json=body, headers={"x-request-id": "mine-1"})
    told = answer.json()
    assert told["request_id"] == answer.headers["x-request-id"] == "mine-1"
    assert told["index_id"] == answer.headers["x-index-id"] == "test-index"
    assert told["results"] == [[], [{**PARIS, "score": 1.0}, {"id": "3", "contents": "Nice\nNice is in France.", "score": 1.0}]]
    assert set(told["timings"]) == {"queue_ms", "engine_ms", "total_ms"}
    assert http.post("/v1/search", json=body).json()["cached"] == [True, True]


def test_every_wire_format_tells_the_index_that_was_searched_in_a_header(http):
    for path, body in (
        ("/search", {"query": "france"}), ("/batch_search", {"query": ["france"]}), ("/queries", {"queries": ["france"]}),
        ("/retrieve", {"queries": ["france"]}),
    ):  # fmt: skip
        assert http.post(path, json=body).headers["x-index-id"] == "test-index"
    assert "x-index-id" not in http.get("/livez").headers
    assert "x-index-id" not in http.post("/search", json={"query": ""}).headers


def test_the_name_of_an_index_adds_no_header_of_its_own():
    named = Opened(DummyRetriever(PASSAGES), "i\r\nset-cookie: a", "f")
    with TestClient(create_app(Settings(), lambda *_: named)) as client:
        wait_ready(client)
        answer = client.post("/search", json={"query": "italy"})
        assert answer.headers["x-index-id"] == "i??set-cookie: a"


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/search", {"query": ""}, 400, "blank"),
        ("/search", {"query": " \n"}, 400, "blank"),
        ("/batch_search", {"query": []}, 400, "blank"),
        ("/batch_search", {"query": ["a", " "]}, 400, "blank"),
        ("/search", {"query": "a", "top_n": 0}, 400, "max_top_k"),
        ("/search", {"query": "a", "top_n": -1}, 400, "max_top_k"),
        ("/search", {"query": "a", "top_n": 10**9}, 400, "max_top_k"),
        ("/search", {"query": "a" * 20_001}, 413, "max_query_characters"),
        ("/search", {"query": "a b " * 1_000}, 413, "max_query_words"),
        ("/search", {"query": "a,b," * 1_000}, 413, "max_query_words"),
        ("/queries", {"queries": ["a"] * 1025}, 413, "max_queries"),
        ("/queries", {"queries": ["a"] * 21, "k": 1_000}, 413, "max_passages"),
        ("/search", {}, 422, "format"),
        ("/search", {"query": ["a"]}, 422, "format"),
        ("/search", {"query": 7}, 422, "format"),
        ("/retrieve", {"queries": "a"}, 422, "format"),
        ("/retrieve", {"queries": ["a"], "topk": "many"}, 422, "format"),
        ("/retrieve", {"queries": ["a"], "query": "a"}, 422, "format"),
        ("/retrieve", {"topk": 3}, 422, "format"),
        ("/retrieve", {"query": ["a"]}, 422, "format"),
        ("/retrieve", {"query": " "}, 400, "blank"),
        ("/nowhere", {}, 404, "path"),
    ],
)
def test_bad_requests_are_refused_with_the_limit_named(http, path, body, status, reason):
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    if reason.startswith("max_"):
        assert reason in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body", [b'{"query": "\\ud800"}', b"\xff\xfe", b"[" * 100_000, b'{"top_n": ' + b"9" * 10_000 + b"}", b""]
)
def test_bodies_that_are_no_json_or_no_unicode_are_refused(http, body):
    answer = http.post("/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["reason"] in ("format", "unicode")


def test_a_request_larger_than_the_limit_is_refused_before_it_is_parsed():
    with TestClient(app_over(DummyRetriever(PASSAGES), max_body_bytes=1_000)) as client:
        wait_ready(client)
        for content in (b"x" * 1_001, (b"x" * 100 for _ in range(11))):  # with and without a declared length
            answer = client.post("/search", content=content)
            assert (answer.status_code, answer.json()["reason"]) == (413, "max_body_bytes")


async def upload(guard, statuses, size, whole=False, leave=None):
    """Send a body of `size` bytes, the whole or a part; then nothing, until `leave` is set; keep the answer's status."""
    pieces = [{"type": "http.request", "body": b"x" * size, "more_body": not whole}]

    async def receive():
        if pieces:
            return pieces.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        statuses.append(message.get("status"))

    await guard({"type": "http", "method": "POST", "path": "/search", "headers": []}, receive, send)


async def test_bodies_that_arrive_together_may_not_take_the_memory_and_those_that_left_give_it_back():
    async def app(scope, receive, send):
        raise AssertionError("no request is complete")

    guard = Guard(app, Settings(max_body_bytes=1_000), frozenset())

    for _ in range(2):
        leave, statuses = asyncio.Event(), []
        async with asyncio.TaskGroup() as tasks:
            for _ in range(MOST_BODIES):
                tasks.create_task(upload(guard, statuses, 1_000, leave=leave))
            await asyncio.sleep(0)
            assert not statuses
            tasks.create_task(upload(guard, statuses, 1_000, leave=leave))
            await asyncio.sleep(0.1)
            assert statuses[0] == 503  # the first makes way for the last
            leave.set()


async def test_uploads_that_stall_make_way_for_one_that_does_not():
    settings = Settings(max_body_bytes=1_000, receive_timeout_s=30)

    async def app(scope, receive, send):
        assert len((await receive())["body"]) == 900
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, settings, frozenset({"/search"}))

    stalled = [[] for _ in range(2 * MOST_BODIES)]
    tasks = [asyncio.create_task(upload(guard, statuses, 900)) for statuses in stalled]
    await asyncio.sleep(0.1)
    dropped = sum(statuses[:1] == [503] for statuses in stalled)
    assert dropped >= MOST_BODIES - 4  # the first ones
    assert not stalled[-1]
    for _ in range(5):
        answered = []
        await upload(guard, answered, 900, whole=True)
        assert answered[0] == 200
    for task in tasks:
        task.cancel()


async def test_uploads_are_not_dropped_where_that_would_make_no_room():
    go = asyncio.Event()

    async def answered(scope, receive, send):
        await go.wait()

    guard = Guard(answered, Settings(max_body_bytes=1_000), frozenset())
    busy = [asyncio.create_task(upload(guard, [], 980, whole=True)) for _ in range(MOST_BODIES)]  # their answers are being made
    small = [[] for _ in range(4)]
    uploads = [asyncio.create_task(upload(guard, statuses, 100)) for statuses in small]
    await asyncio.sleep(0.05)
    refused = []
    await upload(guard, refused, 900)
    assert refused[0] == 503
    assert not any(small)
    go.set()
    await asyncio.gather(*busy)
    for task in uploads:
        task.cancel()


def test_a_length_of_thousands_of_digits_is_too_large():
    with TestClient(app_over(DummyRetriever(PASSAGES))) as client:
        answer = client.post("/search", content=b"{}", headers={"content-length": "9" * 5_000})
        assert (answer.status_code, answer.json()["reason"]) == (413, "max_body_bytes")


def test_without_a_valid_token_nothing_is_answered_but_probes():
    with TestClient(app_over(DummyRetriever(PASSAGES), tokens="alpha, beta")) as client:
        wait_ready(client)
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic beta"}, {"authorization": "beta"}):
            answer = client.post("/search", json={"query": "a"}, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.post("/search", json={"query": "a"}, headers={"authorization": "bearer beta"}).status_code == 200
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_the_openapi_document_says_that_a_token_is_needed_and_where():
    schema = app_over(DummyRetriever(PASSAGES), tokens="t").openapi()
    assert [scheme["scheme"] for scheme in schema["components"]["securitySchemes"].values()] == ["bearer"]
    asking = {path for path, methods in schema["paths"].items() for told in methods.values() if "security" in told}
    assert set(schema["paths"]) - asking == {"/livez", "/readyz", "/health"}
    assert "securitySchemes" not in app_over(DummyRetriever(PASSAGES)).openapi()["components"]


def test_browsers_of_other_origins_are_let_in_only_if_named(http):
    origin = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options("/search", headers=origin).headers
    with TestClient(app_over(DummyRetriever(PASSAGES), cors_origins="https://a.example", tokens="t")) as client:
        assert client.options("/search", headers=origin).headers["access-control-allow-origin"] == "https://a.example"


def test_health_counts_retrievers(http):
    assert http.get("/health").json() == {"status": "healthy", "retrievers": {"total": 1, "available": 1}}


def test_metrics_count_requests_queries_batches_and_refusals(http):
    http.post("/search", json={"query": "counted"})
    http.post("/search", json={"query": "counted"})
    http.post("/no/such/path", json={})
    text = http.get("/metrics").text
    for line in (
        'rag_requests_total{path="/search",status="200"}',
        'rag_requests_total{path="other",status="404"}',
        'rag_queries_total{answered_by="cache",index="default"}',
        'rag_queries_total{answered_by="engine",index="default"}',
        'rag_stage_seconds_count{index="default",stage="engine"}',
        "rag_batch_size_bucket",
        'rag_queued{index="default"} ',
        'rag_ready{index="default"} ',
        'rag_refused_total{reason="path"}',
    ):
        assert line in text, line


def test_logs_hold_request_ids_and_no_text_above_debug(caplog):
    retriever = DummyRetriever(PASSAGES)
    for level, expected in ((logging.INFO, False), (logging.DEBUG, True)):
        caplog.clear()
        with caplog.at_level(level, "rag_serving"), TestClient(app_over(retriever)) as client:
            wait_ready(client)
            client.post("/search", json={"query": "secret question"})
        said = " ".join(record.getMessage() for record in caplog.records)
        assert "POST /search 200" in said
        assert ("secret question" in said) is expected
        assert "Italy" not in said


def test_json_logs_are_one_object_per_line(capsys):
    from rag_serving.logs import configure_logging, flush_logs, request_id

    configure_logging(Settings(log_format="json"))
    token = request_id.set("r-7")
    logging.getLogger("rag_serving.access").info("%(path)s", {"path": "/search"}, extra={"ms": 1.5})
    request_id.reset(token)
    flush_logs()
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["request_id"], line["ms"], line["message"]) == ("INFO", "r-7", 1.5, "/search")


class SlowRetriever(Retriever):
    """Counts how many threads search at once, and which was the first query."""

    size = 1

    def __init__(self) -> None:
        self.active, self.most, self.first, self.closed = 0, 0, None, False

    def search(self, queries, k):
        self.first = self.first or queries[0]
        self.active += 1
        self.most = max(self.most, self.active)
        time.sleep(0.02)
        self.active -= 1
        return [[] for _ in queries]

    def close(self):
        self.closed = True


def test_it_is_ready_only_after_a_warm_up_search_and_says_503_until_then():
    loaded, retriever = threading.Event(), SlowRetriever()

    def load(_, report):
        report("loading the BM25 index")
        loaded.wait(10)
        return Opened(retriever, "i", "f")

    with TestClient(create_app(Settings(), load)) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/health").status_code == 503
        for _ in range(100):
            if client.get("/readyz").json()["stage"] == "loading the BM25 index":
                break
            time.sleep(0.01)
        told = client.get("/readyz")
        assert (told.status_code, told.json()["status"], told.json()["stage"]) == (503, "loading", "loading the BM25 index")
        early = client.post("/search", json={"query": "early"})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        loaded.set()
        wait_ready(client)
        assert retriever.first == "warm up"
        assert client.get("/readyz").json()["passages"] == 1
    time.sleep(0.1)
    assert retriever.closed


def test_searches_never_overlap_and_do_not_block_other_requests():
    retriever = SlowRetriever()
    with TestClient(app_over(retriever, max_batch=1)) as client:
        wait_ready(client)
        threads = [
            threading.Thread(target=client.post, args=("/search",), kwargs={"json": {"query": str(i)}}) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        assert client.get("/health").status_code == 200
        for thread in threads:
            thread.join()
    assert retriever.most == 1


def test_an_index_that_cannot_be_loaded_is_reported_and_not_served():
    failed = threading.Event()

    def load(*_):
        raise ValueError("corrupt index")

    with TestClient(create_app(Settings(), load, on_failure=failed.set)) as client:
        assert failed.wait(5)
        assert client.get("/health").json()["status"] == client.get("/readyz").json()["status"] == "failed"
        assert "corrupt index" in client.post("/search", json={"query": "a"}).json()["detail"]


def test_a_query_of_as_many_words_as_are_allowed_is_served_and_a_long_one_of_few_words_too(http):
    assert http.post("/search", json={"query": " ".join(["a"] * 1_024)}).status_code == 200
    assert http.post("/search", json={"query": "a" * 20_000}).status_code == 200
    assert http.post("/queries", json={"queries": ["a"] * 20, "k": 1_000}).status_code == 200


def test_an_engine_that_hangs_makes_the_service_unready_until_it_answers_again():
    class Hanging(DummyRetriever):
        gate = threading.Event()

        def search(self, queries, k):
            if "hang" in queries:
                self.gate.wait(30)
            return super().search(queries, k)

    with TestClient(app_over(Hanging(PASSAGES), engine_timeout_s=0.5)) as client:
        wait_ready(client)
        assert client.get("/readyz").status_code == 200
        answer = client.post("/search", json={"query": "hang"})
        assert (answer.status_code, answer.json()["reason"]) == (504, "engine_timeout_s")
        assert (client.get("/readyz").status_code, client.get("/readyz").json()["status"]) == (503, "hangs")
        assert client.get("/livez").status_code == 200
        assert 'rag_ready{index="default"} 0.0' in client.get("/metrics").text
        answer = client.post("/search", json={"query": "italy"})
        assert (answer.status_code, answer.json()["reason"], answer.headers["retry-after"]) == (503, "engine_timeout_s", "5")
        Hanging.gate.set()
        wait_ready(client)
        assert 'rag_ready{index="default"} 1.0' in client.get("/metrics").text
        assert client.post("/search", json={"query": "italy"}).status_code == 200


class Told(Ending):
    """Keeps what would be left behind, in the place of ending the process."""

    def __init__(self):
        super().__init__(drain_s=0.1, grace_s=0.2)
        self.hanging = []

    def listen(self):
        pass

    def end_within(self, seconds, code=0):
        pass

    def end_after_main(self, seconds):
        pass

    def leave(self, hanging, code=0):
        self.hanging += hanging


@pytest.mark.parametrize(
    ("hangs_in", "told"),
    [
        ("nothing", []),
        ("load", ["index default, loading (reading the mount)"]),
        ("warm_up", ["index default, warming up"]),
        ("search", ["index default, answering its last queries or closing"]),
        ("close", ["index default, answering its last queries or closing"]),
        ("load again", ["index default, being loaded again"]),
        ("warm_up again", ["index default, warming up what was loaded again"]),
    ],
)
def test_what_still_hangs_when_the_server_ends_is_told(hangs_in, told):
    gate, reached, loads = threading.Event(), threading.Event(), []

    def hang(here):
        if hangs_in == here + " again" * (len(loads) > 1):
            reached.set()
            gate.wait(30)

    class Hanging(DummyRetriever):
        def warm_up(self):
            hang("warm_up")

        def search(self, queries, k):
            hang("search")
            return super().search(queries, k)

        def close(self):
            hang("close")

    def load(_, report):
        loads.append(1)
        report("reading the mount")
        hang("load")
        return Opened(Hanging(PASSAGES), "i", "f")

    ending = Told()
    with TestClient(create_app(Settings(engine_timeout_s=0.2, drain_s=0.2), load, ending=ending)) as client:
        if hangs_in not in ("load", "warm_up"):
            wait_ready(client)
        if hangs_in.endswith("again"):
            client.app.state.reload()
        if hangs_in == "search":
            assert client.post("/search", json={"query": "italy"}).status_code == 504
        assert hangs_in in ("nothing", "close") or reached.wait(10)
    gate.set()
    assert ending.hanging == told


def test_what_a_reload_replaced_is_let_go_with_its_files_though_the_collector_never_looks_at_it():
    """`gc.freeze` after each load: a cycle would stay for ever, and the disk space of files that were deleted with it."""
    made = []

    def load(*_):
        retriever = DummyRetriever(PASSAGES)
        made.append(weakref.ref(retriever))
        return Opened(retriever, str(len(made)), "f")

    with TestClient(create_app(Settings(), load)) as client:
        wait_ready(client)
        for _ in range(3):
            assert client.post("/search", json={"query": "italy"}).status_code == 200
            client.app.state.reload().result(20)
        for _ in range(200):  # what was replaced is closed in a thread
            if [one() is not None for one in made] == [False, False, False, True]:
                break
            time.sleep(0.01)
        assert [one() is not None for one in made] == [False, False, False, True]


def test_a_second_reload_says_that_it_waits_for_the_first(caplog):
    gate, loads = threading.Event(), []

    def load(_, report):
        loads.append(1)
        if len(loads) == 2:
            gate.wait(30)
        return Opened(DummyRetriever(PASSAGES), str(len(loads)), "f")

    with TestClient(create_app(Settings(), load)) as client:
        wait_ready(client)
        reloads = [client.app.state.reload()]
        while len(loads) < 2:
            time.sleep(0.01)
        reloads.append(client.app.state.reload())
        while "already" not in caplog.text:
            time.sleep(0.01)
        gate.set()
        for reload in reloads:
            reload.result(10)
        assert client.get("/readyz").json()["index_id"] == "3"
    assert "the index is being loaded again already (being loaded again); this is done after it" in caplog.text


def test_an_engine_that_fails_is_a_502_and_the_service_goes_on():
    class Failing(DummyRetriever):
        def search(self, queries, k):
            if any("bad" in query for query in queries):
                raise RuntimeError("engine trouble")
            return super().search(queries, k)

    with TestClient(app_over(Failing(PASSAGES))) as client:
        wait_ready(client)
        answer = client.post("/search", json={"query": "bad"})
        assert (answer.status_code, answer.json()["reason"]) == (502, "engine")
        assert "trouble" not in answer.text  # what an exception says may hold a passage
        assert client.post("/search", json={"query": "italy"}).status_code == 200


def test_requests_are_answered_by_the_index_they_were_admitted_to_and_nothing_cached_survives():
    class Named(DummyRetriever):
        def __init__(self, name):
            super().__init__([(name, "passage")])
            self.name, self.go, self.closed = name, threading.Event(), threading.Event()

        def search(self, queries, k):
            if "blocks passage" in queries:
                assert self.go.wait(10)
            return [super(Named, self).search(["passage"], k)[0] for _ in queries]

        def close(self):
            self.closed.set()

    made = [Named("old"), Named("new")]
    left = iter(made)

    def load(*_):
        retriever = next(left, None)
        if retriever is None:
            raise ServingError("no third index")
        return Opened(retriever, retriever.name, retriever.name)

    with TestClient(create_app(Settings(max_batch=1), load)) as client:
        wait_ready(client)
        answers = {}

        def ask(query):
            told = client.post("/v1/search", json={"queries": [query], "top_k": 1}).json()
            answers[query] = told["index_id"], told["results"][0][0]["id"], told["cached"]

        ask("cached")
        threads = [threading.Thread(target=ask, args=(query,)) for query in ("blocks passage", "queued")]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        reloading = client.app.state.reload()
        made[0].go.set()
        reloading.result(10)
        for thread in threads:
            thread.join(10)
        assert answers == dict.fromkeys(("cached", "blocks passage", "queued"), ("old", "old", [False]))
        assert made[0].closed.wait(5)
        ask("cached")
        assert answers["cached"] == ("new", "new", [False])
        client.app.state.reload().result(10)  # fails
        ask("cached")
        assert answers["cached"] == ("new", "new", [True])
        assert client.get("/readyz").json()["index_id"] == "new"


def test_what_is_no_http_fills_no_log(capsys, monkeypatch):
    from rag_serving.logs import configure_logging

    # a server that an earlier test started with uvicorn's own logging keeps its lines from the root logger
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    configure_logging(Settings())
    strangers = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(strangers, "propagate", True)
    monkeypatch.setattr(strangers, "disabled", False)
    monkeypatch.setattr(strangers, "level", logging.NOTSET)
    strangers.warning("Invalid HTTP request received.")
    strangers.warning("something else")
    told = capsys.readouterr().err
    assert "something else" in told
    assert "Invalid HTTP" not in told


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are assigned on Linux only")
def test_the_engine_has_no_more_threads_than_the_process_may_use_cores():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert Settings(index={"i": "i"}).engine_threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert Settings(index={"i": "i"}, workers=len(allowed)).engine_threads == 1
    assert Settings(index={"i": "i"}, threads=7).engine_threads == 7
