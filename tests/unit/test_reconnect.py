"""Connections to a model's server that are closed, reset or refused, over real TCP; both clients."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from evaluation.flashrag_parts import ServedGenerator
from research_rl.errors import GenerationError
from research_rl.inference import reconnect
from research_rl.inference.openai_server import CompletionsServer
from tests.servers import free_port
from tests.unit.test_agent import TOKENIZER

CHOICE = {"token_ids": [7], "text": "Oslo"}
ANSWER = json.dumps({"choices": [CHOICE], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def piece(text: str) -> bytes:
    data = f"data: {json.dumps({'choices': [{**CHOICE, 'text': text}]})}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@contextmanager
def tcp_server(answer: Callable[[int, int], bytes | None], reset: bool = False, port: int = 0) -> Iterator[str]:
    """Answer requests with the bytes of `answer(connection, request on it)`, both from 1; None drops the connection without a word."""
    connections = 0

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            nonlocal connections
            connections += 1
            mine = connections
            number = 0
            while head := self.rfile.readline():
                length = 0
                while head.strip():
                    if head.lower().startswith(b"content-length:"):
                        length = int(head.split(b":")[1])
                    head = self.rfile.readline()
                self.rfile.read(length)
                number += 1
                said = answer(mine, number)
                self.wfile.write(said or b"")
                if said is None or not said.endswith((ANSWER, END)):  # the end of the connection, in the middle of an answer
                    if reset:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def only_once(connection: int, request: int) -> bytes | None:
    """Every connection is kept alive, and lost at its second request."""
    return WHOLE if request == 1 else None


@pytest.fixture
def soon(monkeypatch):
    """Give up after three attempts."""
    monkeypatch.setattr(reconnect, "ATTEMPTS", 3)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_rollout_goes_on_when_kept_alive_connections_are_closed_without_an_answer(reset):
    with tcp_server(only_once, reset) as url:
        server = CompletionsServer(url, "m")
        found = [await server.generate([1], 5, ()) for _ in range(4)]
        await server.close()
    assert [one.token_ids for one in found] == [[7]] * 4
    assert server.retries == 3


@pytest.mark.parametrize("reset", [False, True])
def test_a_baseline_goes_on_when_kept_alive_connections_are_closed_without_an_answer(reset):
    reconnecting = reconnect.Reconnecting()
    with tcp_server(only_once, reset) as url, httpx.Client() as http:
        generator = ServedGenerator(url, "m", 8, TOKENIZER, reconnecting(http.post))
        assert generator.generate(["Q"] * 4) == ["Oslo"] * 4
    assert reconnecting.retries == 3


async def test_a_server_that_is_refused_for_a_moment_is_waited_for():
    port = free_port()
    up = threading.Event()

    def later() -> None:
        time.sleep(1)
        with tcp_server(only_once, port=port):
            up.wait(20)

    thread = threading.Thread(target=later)
    thread.start()
    server = CompletionsServer(f"http://127.0.0.1:{port}/v1", "m")
    try:
        assert (await server.generate([1], 5, ())).token_ids == [7]
    finally:
        up.set()
        await server.close()
        thread.join()
    assert 1 <= server.retries < reconnect.ATTEMPTS


async def test_a_server_that_stays_away_is_told_after_the_last_attempt(soon):
    url = f"http://127.0.0.1:{free_port()}/v1"
    server = CompletionsServer(url, "m")
    with pytest.raises(GenerationError, match=rf"no model server at {url}: ConnectError .*curl {url}/models"):
        await server.generate([1], 5, ())
    assert server.retries == 2


async def test_a_connection_that_is_lost_as_it_is_made_is_made_again(soon):
    answers = iter([AttributeError("'NoneType' object has no attribute 'getpeername'"), httpx.Response(200, content=ANSWER)])

    def network(request: httpx.Request) -> httpx.Response:
        if isinstance(answer := next(answers), Exception):  # as anyio raises it
            raise answer
        return answer

    server = CompletionsServer("http://test/v1", "m", transport=httpx.MockTransport(network))
    assert (await server.generate([1], 5, ())).token_ids == [7]
    assert server.retries == 1


async def test_a_stream_that_is_lost_before_its_first_piece_is_asked_for_again():
    told: list[str] = []
    with tcp_server(lambda connection, _: STREAM + (piece("Os") + piece("lo") + END if connection > 1 else b"")) as url:
        server = CompletionsServer(url, "m")
        found = await server.stream([1], 5, (), told.append)
        await server.close()
    assert (told, found.token_ids, server.retries) == (["Os", "lo"], [7, 7], 1)


async def test_a_stream_that_is_lost_after_a_piece_was_told_is_an_error_and_nothing_is_told_twice():
    told: list[str] = []
    with tcp_server(lambda connection, _: STREAM + piece("Os")) as url:
        server = CompletionsServer(url, "m")
        with pytest.raises(GenerationError, match=r"broke off in the middle of an answer .* ask again"):
            await server.stream([1], 5, (), told.append)
        await server.close()
    assert (told, server.retries) == (["Os"], 0)


async def test_a_refusal_is_not_asked_again():
    asked = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(400, text="too long")

    server = CompletionsServer("http://model/v1", "m", transport=httpx.MockTransport(refuse))
    with pytest.raises(GenerationError, match="HTTP 400: too long"):
        await server.generate([1], 5, ())
    assert len(asked) == 1


@pytest.mark.parametrize(
    "body", ["<html>proxy</html>", '{"error": "busy"}', '{"choices": []}', '{"choices": [7]}', "[" * 100_000]
)
async def test_an_answer_that_is_no_completion_is_told_with_the_address_and_what_it_says(body):
    server = CompletionsServer("http://test/v1", "m", transport=httpx.MockTransport(lambda _: httpx.Response(200, text=body)))
    with pytest.raises(GenerationError, match=r"http://test/v1/completions answered with something that is no completion: .+"):
        await server.generate([1], 5, ())
    line = httpx.MockTransport(lambda _: httpx.Response(200, text=f"data: {body}\n\n"))
    with pytest.raises(GenerationError, match="no completion"):
        await CompletionsServer("http://test/v1", "m", transport=line).stream([1], 5, (), lambda _: None)


@pytest.mark.parametrize("ids", [[1.5], [-1], [True], "123", [1e30]])
async def test_ids_that_are_no_tokens_are_no_completion(ids):
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [{"token_ids": ids}]}))
    with pytest.raises(GenerationError, match="no completion"):
        await CompletionsServer("http://test/v1", "m", transport=answer).generate([1], 5, ())


async def test_a_server_that_samples_more_than_was_asked_for_is_left():
    piece = 'data: {"choices": [{"token_ids": [7, 8], "text": "x"}]}\n\n'
    answer = httpx.MockTransport(lambda _: httpx.Response(200, text=piece * 100))
    told: list[str] = []
    with pytest.raises(GenerationError, match="more than the 5 tokens"):
        await CompletionsServer("http://test/v1", "m", transport=answer).stream([1], 5, (), told.append)
    assert told == ["x", "x"]


async def test_a_server_that_never_ends_a_generation_is_left(monkeypatch):
    monkeypatch.setattr("research_rl.inference.openai_server._LONGEST_S", 0.1)

    async def drip(_):
        await asyncio.sleep(60)
        raise AssertionError

    server = CompletionsServer("http://test/v1", "m", transport=httpx.MockTransport(drip))
    for ask in (server.generate([1], 5, ()), server.stream([1], 5, (), lambda _: None)):
        with pytest.raises(GenerationError, match=r"did not end a generation within 0\.1 s"):
            await ask
