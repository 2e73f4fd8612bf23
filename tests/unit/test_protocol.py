"""What one connection may cost a running server: its head, its silence, the answers that it does not read."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time

import httpx
import pytest

from rag_serving.protocol import LimitedProtocol, Limits
from rag_serving.retrievers import DummyRetriever
from tests.servers import in_thread

RETRIEVER = DummyRetriever([(str(i), "a passage " * 1_000) for i in range(200)])
HEAD = b"POST /search HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def url():
    with in_thread(RETRIEVER, max_head_bytes=10_000) as address:
        yield address


def connect(url: str) -> socket.socket:
    """Return a connection to the server; it waits 30 s for an answer."""
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """Return what comes until the server closes; a reset is an end, too."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def closed(connection: socket.socket) -> bool:
    """Tell whether the server has closed a connection on which it has nothing to say."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def dropped(url: str, limit: str = "send_timeout_s") -> float:
    """Return how many connections were dropped because their answer was not read."""
    found = re.search(rf'rag_refused_total{{reason="{limit}"}} (\S+)', httpx.get(f"{url}/metrics").text)
    return float(found.group(1)) if found else 0.0


def request(body: object) -> bytes:
    """Return a request for `/search`."""
    content = json.dumps(body).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(content) + content


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x: " + b"y" * 11_000,
        HEAD + b"x: " + b"y" * 11_000 + b"\r\n\r\n",
        HEAD + b"".join(b"x%d: yyyy\r\n" % i for i in range(2_000)) + b"\r\n",
        b"GET /" + b"y" * 11_000,
        b"GET /" + b"y" * 11_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["a header without an end", "one large header", "many small headers", "an address without an end", "a large address"],
)
def test_a_head_larger_than_the_limit_is_refused_and_the_connection_closed(url, head):
    with connect(url) as connection:
        connection.sendall(head)
        told, _, body = everything(connection).partition(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["reason"] == "max_head_bytes"
    with httpx.Client(base_url=url) as client:
        assert 'rag_refused_total{reason="max_head_bytes"}' in client.get("/metrics").text


def test_a_head_that_never_ends_is_read_no_further_than_the_limit(url):
    with connect(url) as connection, pytest.raises(ConnectionError):
        connection.sendall(HEAD + b"x: " + b"y" * 50_000_000)


def test_a_head_within_the_limit_is_read_however_it_is_cut(url):
    message = request({"query": "passage", "top_n": 1}).replace(b"host: x", b"host: x\r\nx: " + b"y" * 8_000)
    with connect(url) as connection:
        for start in range(0, len(message), 1_000):
            connection.sendall(message[start : start + 1_000])
            time.sleep(0.001)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_body_in_many_small_chunks_is_no_head(url):
    content = json.dumps({"query": "passage " * 1_000, "top_n": 1}).encode()
    chunks = b"".join(b"4\r\n%s\r\n" % content[i : i + 4] for i in range(0, len(content) - len(content) % 4, 4))
    rest = content[len(content) - len(content) % 4 :]
    with connect(url) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        connection.sendall((b"%x\r\n%s\r\n" % (len(rest), rest) if rest else b"") + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_what_follows_a_body_in_chunks_counts_as_head(url):
    content = b'{"query": "passage", "top_n": 1}'
    with connect(url) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(content), content))
        for _ in range(2):  # read one by one: the limit is looked at once a read
            connection.sendall(b"x: " + b"y" * 11_000)
            time.sleep(0.2)
        assert b"HTTP/1.1 200 " not in everything(connection)


def test_requests_that_do_not_wait_for_an_answer_are_refused_beyond_some(url):
    with connect(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 5_000)
        assert everything(connection).count(b"HTTP/1.1 200 ") < 100


def test_an_answer_that_nobody_reads_is_dropped():
    with in_thread(RETRIEVER, send_timeout_s=0.3) as url, connect(url) as connection:
        before = dropped(url)
        connection.sendall(request({"query": "passage", "top_n": 200}) * 10)  # 2 MB each
        until = time.monotonic() + 30
        while dropped(url) == before:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert len(everything(connection)) < 20_000_000


def test_answers_that_nobody_reads_take_no_more_memory_together_than_the_limit():
    large = DummyRetriever([(str(i), "a passage " * 10_000) for i in range(100)])
    with in_thread(large, max_unread_bytes=20_000_000) as url, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(url)) for _ in range(12)]
        for connection in held:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.sendall(request({"query": "passage", "top_n": 100}))  # 10 MB, of which the kernel takes some
        until = time.monotonic() + 30
        while dropped(url, "max_unread_bytes") < 8:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert httpx.post(f"{url}/search", json={"query": "passage", "top_n": 1}).status_code == 200
        assert b"HTTP/1.1 200 " in held[-1].recv(100)  # who came last is served


def test_of_answers_that_nobody_reads_the_largest_makes_way_for_the_others():
    class Transport:
        def __init__(self, unread: int) -> None:
            self.unread, self.aborted = unread, False

        def get_write_buffer_size(self) -> int:
            return self.unread

        def abort(self) -> None:
            self.aborted = True

    limits = Limits(1, 1.0, 1.0, 9, unread_bytes=100)
    transports = [Transport(size) for size in (30, 30, 30, 90, 10, 30)]
    for transport in transports:
        protocol = LimitedProtocol.__new__(LimitedProtocol)
        protocol._limits, protocol._answered, protocol.transport = limits, None, transport
        protocol._count_unread()
    assert [transport.aborted for transport in transports] == [True, False, False, True, False, False]
    assert sum(limits.unread.values()) == 100


def test_an_answer_that_is_read_slowly_but_read_arrives_whole():
    with in_thread(RETRIEVER, send_timeout_s=10) as url, connect(url) as connection:
        connection.sendall(request({"query": "passage", "top_n": 200}).replace(b"host: x", b"host: x\r\nconnection: close"))
        time.sleep(0.3)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head


def test_silent_connections_make_way_for_a_client_that_speaks():
    with in_thread(RETRIEVER, max_connections=20) as url:
        silent = [connect(url) for _ in range(60)]
        with httpx.Client(base_url=url, timeout=30) as client:
            assert client.post("/search", json={"query": "passage", "top_n": 1}).status_code == 200
        until = time.monotonic() + 10  # half of what a silent connection is otherwise given
        while sum(map(closed, silent)) < 40:
            assert time.monotonic() < until
            time.sleep(0.05)
        for connection in silent:
            connection.close()


def test_beyond_the_limit_of_connections_a_request_in_progress_is_not_given_up():
    class Slow(DummyRetriever):
        def search(self, queries, k):
            time.sleep(0.5)
            return super().search(queries, k)

    with in_thread(Slow([("1", "a passage")]), max_connections=2) as url, connect(url) as one, connect(url) as two:
        for connection in (one, two):
            connection.sendall(request({"query": "passage", "top_n": 1}))
        time.sleep(0.2)
        with connect(url) as third:
            assert b"max_connections" in everything(third)
        assert all(connection.recv(100).startswith(b"HTTP/1.1 200 ") for connection in (one, two))
