"""`rag-serving mcp`: the official client against the real command and application, over a real service."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("mcp")

import httpx2
from mcp import Client as Agent
from mcp import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from rag_serving.cli import main
from rag_serving.client import Client
from rag_serving.corpus import Corpus
from rag_serving.indexing import build_index
from rag_serving.mcp_server import NOT_NOW, http_app, mcp_server, serve_http
from rag_serving.retrievers import DummyRetriever
from rag_serving.settings import Settings
from tests.servers import app_in_thread, free_port, in_thread, json_server
from tests.unit.test_lookup import write

ROOT = Path(__file__).parents[2]
PASSAGES = [
    *({"id": f"rome#{i}", "contents": f'"Rome"\nOf Rome, {i}.'} for i in range(5)),
    {"id": "alone", "contents": "of nobody"},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    corpus = write(tmp_path_factory.mktemp("corpus"), PASSAGES)
    retriever = DummyRetriever([(passage["id"], passage["contents"]) for passage in PASSAGES])
    with in_thread(retriever, corpus=corpus, open_passages=2, max_top_k=20, tokens="s3cret") as address:
        yield address


@pytest.fixture(scope="module")
def over_http(url):
    with app_in_thread(http_app(mcp_server(Client(url, "s3cret")), Settings(tokens="mine"))) as address:
        yield f"{address}/mcp"


@contextlib.asynccontextmanager
async def agent_over_http(address, token):
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http,
        Agent(streamable_http_client(address, http_client=http)) as agent,
    ):
        yield agent


def over_stdio(url, token="s3cret"):
    return Agent(
        StdioServerParameters(
            command=sys.executable, args=["-m", "rag_serving.cli", "mcp", "--url", url], cwd=ROOT, env={"RETRIEVAL_TOKEN": token}
        )
    )  # fmt: skip


@contextlib.contextmanager
def command(*flags, **environment):
    """Run `rag-serving mcp --transport http` on a free port; yield its URL; end it."""
    port = free_port()
    arguments = [sys.executable, "-m", "rag_serving.cli", "mcp", "--transport", "http", "--port", str(port), *flags]
    with subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert f"http://127.0.0.1:{port}/mcp" in server.stderr.readline()
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.terminate()


def text(result):
    (block,) = result.content
    return block.text


async def read(agent):
    """Search, open what was found, read on, and ask for too much."""
    assert sorted(tool.name for tool in (await agent.list_tools()).tools) == ["open", "search"]
    found = await agent.call_tool("search", {"query": "of rome, 2"})
    assert text(found) == "1. Rome (id: rome#2)\nOf Rome, 2."
    assert found.structured_content == {"passages": [{**PASSAGES[2], "score": 1.0}]}
    opened = await agent.call_tool("open", {"id": "rome#2"})
    assert text(opened) == "Page 2 of 3.\n\n1. Rome (id: rome#2)\nOf Rome, 2.\n\n2. Rome (id: rome#3)\nOf Rome, 3."
    further = await agent.call_tool("open", {"id": "rome#2", "page": 3})
    assert further.structured_content == {
        "index_id": "test-index", "id": "rome#2", "title": "Rome", "page": 3, "pages": 3, "passages": [PASSAGES[4]],
    }  # fmt: skip
    for tool, arguments, told in [
        ("open", {"id": "rome#2", "page": 4}, "refused with 400: there is no page 4"),
        ("open", {"id": "nothing"}, "refused with 404: the index test-index has no passage with the id 'nothing'"),
        ("search", {"query": "rome", "top_k": 21}, "refused with 400: 21 passages per query asked for"),
        ("search", {"query": " "}, "refused with 400: query 0 is blank"),
        ("search", {"query": "rome", "where": {"year": 1}}, "passages have no field 'year'"),
        ("search", {"query": "rome", "where": {"year": []}}, "an empty list matches nothing"),
    ]:
        refused = await agent.call_tool(tool, arguments)
        assert refused.is_error
        assert told in text(refused)
        assert "127.0.0.1" not in str(refused)


async def test_an_agent_searches_and_reads_on_over_stdio(url):
    async with over_stdio(url) as agent:
        await read(agent)


async def test_an_agent_searches_and_reads_on_over_http(over_http):
    async with agent_over_http(over_http, "mine") as agent:
        await read(agent)


async def test_an_agent_of_an_older_protocol_is_answered_too(over_http):
    async with (
        httpx2.AsyncClient(headers={"authorization": "Bearer mine"}) as http,
        Agent(streamable_http_client(over_http, http_client=http), mode="legacy") as agent,
    ):
        await read(agent)


async def test_the_tools_say_what_they_take_and_give(url):
    async with Agent(mcp_server(Client(url, "s3cret"))) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
    assert tools["search"].input_schema["required"] == ["query"]
    assert tools["search"].input_schema["properties"]["top_k"]["default"] == 5
    assert tools["open"].input_schema["required"] == ["id"]
    for tool in tools.values():
        assert all(field["description"] for field in tool.input_schema["properties"].values())
        assert tool.description
        assert tool.annotations.read_only_hint
    assert {"id", "title", "page", "pages", "passages"} <= set(tools["open"].output_schema["properties"])


async def test_nothing_found_is_said_and_is_no_error(url):
    async with Agent(mcp_server(Client(url, "s3cret"))) as agent:
        found = await agent.call_tool("search", {"query": "Paris"})
    assert (found.is_error, text(found), found.structured_content) == (False, "No passage was found.", {"passages": []})


async def test_a_passage_without_a_title_is_shown_whole(url):
    async with Agent(mcp_server(Client(url, "s3cret"))) as agent:
        assert text(await agent.call_tool("search", {"query": "nobody"})) == "1. Untitled (id: alone)\nof nobody"


async def test_a_token_that_the_service_refuses_is_told_to_the_agent(url):
    async with over_stdio(url, "wrong") as agent:
        refused = await agent.call_tool("search", {"query": "rome"})
    assert (refused.is_error, refused.structured_content) == (True, None)
    assert "refused with 401: a valid token is needed" in text(refused)


CALLS = [("search", {"query": "rome"}), ("open", {"id": "rome#2"})]


async def test_another_kind_of_service_is_told_to_the_agent_and_its_address_to_the_log_only(caplog):
    with json_server(lambda path, body: (200, {"hello": []})) as other:
        async with Agent(mcp_server(Client(other))) as agent:
            for tool, arguments in CALLS:
                failed = await agent.call_tool(tool, arguments)
                assert failed.is_error
                assert text(failed).endswith(
                    f"the search service is no rag-serving: what it answers is not in the form of /v1/{tool}"
                )
    assert f"{other} is no rag-serving" in caplog.text


async def test_a_service_that_is_gone_or_busy_is_no_result_and_what_is_behind_it_is_told_to_the_log_only(caplog):
    nobody = f"http://127.0.0.1:{free_port()}"
    with json_server(lambda path, body: (503, {"detail": "Milvus at milvus.internal:19530 is gone"})) as busy:
        for address, told, logged in [
            (nobody, "does not answer; it may later", "does not answer (All connection attempts failed)"),
            (busy, "refused with 503; it may answer later", "refused with 503: Milvus at milvus.internal:19530 is gone"),
        ]:
            async with Agent(mcp_server(Client(address))) as agent:
                for tool, arguments in CALLS:
                    caplog.clear()
                    with pytest.raises(MCPError) as error:
                        await agent.call_tool(tool, arguments)
                    assert (error.value.code, str(error.value)) == (NOT_NOW, f"the search service {told}")
                    assert f"{address} {logged}" in caplog.text


async def test_a_password_in_the_address_is_not_told():
    async with Agent(mcp_server(Client(f"http://me:pa55@127.0.0.1:{free_port()}"))) as agent:
        with pytest.raises(MCPError) as error:
            await agent.call_tool("search", {"query": "rome"})
    assert "pa55" not in str(error.value)


def initialize(address, **headers):
    version = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return httpx.post(
        address, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": version},
        headers={"accept": "application/json, text/event-stream", **headers},
    )  # fmt: skip


def test_over_http_a_token_is_asked_for_where_there_are_some(over_http):
    for headers in ({}, {"authorization": "Bearer s3cret"}):
        refused = initialize(over_http, **headers)
        assert (refused.status_code, refused.json()["reason"]) == (401, "token")
    answer = initialize(over_http, authorization="Bearer mine")
    assert answer.json()["result"]["serverInfo"]["name"] == "rag-serving"


def test_over_http_pages_of_other_hosts_are_not_answered(over_http):
    mine = {"authorization": "Bearer mine"}
    assert initialize(over_http, **mine, host="evil.example").status_code == 421
    assert initialize(over_http, **mine, origin="http://evil.example").status_code == 403
    assert initialize(over_http, **mine, origin="http://localhost:3000").status_code == 200


async def test_the_command_speaks_http_and_reads_its_tokens_from_a_file(url, tmp_path):
    (tmp_path / "tokens").write_text("mine\n")
    flags = ["--url", url, "--tokens-file", str(tmp_path / "tokens"), "--allow-host", "search.example"]
    with command(*flags, RETRIEVAL_TOKEN="s3cret") as address:
        assert initialize(address).status_code == 401
        mine = {"authorization": "Bearer mine"}
        assert [initialize(address, **mine, host=host).status_code for host in ("search.example", "other.example")] == [
            200,
            421,
        ]
        async with agent_over_http(address, "mine") as agent:
            assert not (await agent.call_tool("search", {"query": "rome"})).is_error


def test_the_address_is_told_when_it_can_be_connected_to(monkeypatch):
    told = []

    def connect(text, *values):
        told.append(httpx.URL((text % values).removeprefix("MCP is spoken at ")))
        socket.create_connection((told[-1].host, told[-1].port), timeout=5).close()

    monkeypatch.setattr("rag_serving.mcp_server.uvicorn.Server.run", lambda server, sockets: None)
    monkeypatch.setattr("rag_serving.mcp_server.configure_logging", lambda settings: None)
    monkeypatch.setattr("rag_serving.mcp_server.log.info", connect)
    serve_http(Client("http://127.0.0.1:9"), Settings(), "127.0.0.1", 0, [])
    assert [url.path for url in told] == ["/mcp"]


def test_what_cannot_be_is_told_in_a_line(url, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RETRIEVAL_TOKEN", "s3cret")
    taken = url.rpartition(":")[2]
    for flags, told in [
        (["--host", "0.0.0.0"], "whoever reaches 0.0.0.0:8001 could search with your token"),
        (["--port", taken], "choose another --port"),
        (["--tokens-file", str(tmp_path / "none")], "cannot be read"),
    ]:
        assert main(["mcp", "--url", url, "--transport", "http", *flags]) == 1
        assert told in capsys.readouterr().err


async def test_an_agent_searches_by_conditions_and_is_told_that_the_bound_was_met(tmp_path):
    rows = [{"id": str(i), "contents": f"Rome\nOf Rome, {i}.", "n": i} for i in range(30)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tmp_path / "c.jsonl", tmp_path / "i", processes=1)
    retriever = DummyRetriever([(row["id"], row["contents"]) for row in rows])
    with (
        in_thread(retriever, corpus=Corpus(tmp_path / "i"), max_top_k=20) as service,
        app_in_thread(http_app(mcp_server(Client(service)), Settings())) as address,
    ):
        async with agent_over_http(f"{address}/mcp", "any") as agent:
            for top_k, ids, bound_met in ((2, ["18", "19"], None), (5, ["18", "19"], True)):
                found = await agent.call_tool("search", {"query": "rome", "top_k": top_k, "where": {"n": {"gte": 18}}})
                assert [passage["id"] for passage in found.structured_content["passages"]] == ids
                assert found.structured_content.get("bound_met") is bound_met
                assert ("so few match" in text(found)) is bool(bound_met)


def test_no_stream_that_says_nothing_can_be_opened():
    with app_in_thread(http_app(mcp_server(Client("http://127.0.0.1:9")), Settings())) as address:
        for method in ("GET", "DELETE", "PUT"):
            answer = httpx.request(method, f"{address}/mcp", headers={"accept": "text/event-stream"}, timeout=10)
            assert (answer.status_code, answer.json()["reason"]) == (405, "method")
