"""uvicorn's HTTP protocol with limits on what one connection may cost: bytes and seconds of a head, seconds of an answer, and how many.

uvicorn limits the pause after a response, and with h11 the bytes of a head. With httptools, which takes a third of the time, neither a
head nor the pipelining of requests has a limit, and a header that arrives in pieces is copied once per piece. An answer that nobody reads
would be kept for ever by either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rag_serving import metrics
from rag_serving.operations import problem
from rag_serving.settings import Settings

log = logging.getLogger("rag_serving")

MAX_PIPELINED = 64  # requests that a client has sent before the first of them is answered


@dataclass
class Limits:
    """What one server's connections may cost. `owing` are those whose request is not complete, the one that owes longest first; `unread`
    those that do not take what was written for them, and its bytes, the one that has waited longest first.
    """

    head_bytes: int
    head_s: float
    send_s: float
    connections: int
    unread_bytes: int
    owing: dict[LimitedProtocol, None] = field(default_factory=dict, repr=False)
    unread: dict[LimitedProtocol, int] = field(default_factory=dict, repr=False)


def limited_protocol(settings: Settings, descriptors: int) -> Callable[..., LimitedProtocol]:
    """Return what makes uvicorn's protocols for one server in a process of `descriptors` open files; picklable."""
    # the index's files, the listener, the event loop and the engine need descriptors, too
    connections = min(settings.max_connections, max(1, descriptors - 128))
    if connections < settings.max_connections:
        log.warning("max_connections is %d: the process may open %d files (ulimit -n)", connections, descriptors)
    limits = Limits(
        settings.max_head_bytes, settings.receive_timeout_s, settings.send_timeout_s, connections, settings.max_unread_bytes
    )
    return partial(LimitedProtocol, limits)


class LimitedProtocol(HttpToolsProtocol):
    """Refuses heads that are too large or too slow, and drops connections that do not take their answer.

    Beyond the limit of connections the one that has owed a request longest makes way for a new one: silent connections cannot lock out
    a client that speaks at once.
    """

    def __init__(self, limits: Limits, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._answered: Any = None  # uvicorn's cycle of the request that is being answered
        self._unparsed = 0  # bytes since the parser last completed a head, a piece of a body, or a request
        self._named = 0  # bytes of the request's address and headers, trailers included

    # connections

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        owing = self._limits.owing
        owing[self] = None
        if len(self.connections) > self._limits.connections:
            oldest = next(iter(owing))
            if oldest is self:
                self._refuse(503, "max_connections", f"{self._limits.connections} connections are open: max_connections")
                return
            oldest._drop()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.owing.pop(self, None)
        self._limits.unread.pop(self, None)
        self._left()
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def _drop(self) -> None:
        self._limits.owing.pop(self, None)
        self._limits.unread.pop(self, None)
        self._left()
        self.transport.abort()

    def _left(self) -> None:
        """Tell the request that is being answered that nobody is there. uvicorn tells the one that came last, and that one later."""
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Answer and close; only close where an answer would come before another that is due."""
        body = problem(reason, detail)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(
                STATUS_LINE[status] + b"content-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n" % len(body) + body
            )
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._await_reader()

    # the head

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unparsed > self._limits.head_bytes:  # a head, or what follows a body in chunks, that does not end
            self._refuse_head()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._stop_head_timer()  # the head is complete; the body is timed by the application
        elif self._head_timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        self._named = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        self._limits.owing.pop(self, None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._named > self._limits.head_bytes:
            self._refuse_head()
        elif self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
            self._await_reader()
        else:
            self._close()

    def _count(self, length: int) -> None:
        self._named += length
        if self._named > self._limits.head_bytes:
            raise ValueError("the head is too large")  # httptools stops, uvicorn calls send_400_response

    def _refuse_head(self) -> None:
        limit = self._limits.head_bytes
        self._refuse(431, "max_head_bytes", f"the request's address and headers are larger than max_head_bytes, {limit}")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_s, self._head_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._close()

    # the answer

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()
        elif self.cycle.response_complete:
            self._limits.owing[self] = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()
        self._count_unread()

    def _count_unread(self) -> None:
        """Note what this client has not taken. Beyond the limit for all, who holds most makes way; of equals, who waits longest."""
        unread = self._limits.unread
        unread[self] = self.transport.get_write_buffer_size()
        while sum(unread.values()) > self._limits.unread_bytes:
            metrics.REFUSED.labels("max_unread_bytes").inc()
            log.warning("a connection was dropped: answers that nobody took came to more than max_unread_bytes")
            max(unread, key=unread.__getitem__)._drop()

    def resume_writing(self) -> None:
        self._limits.unread.pop(self, None)
        super().resume_writing()
        if not self.transport.is_closing():  # then even what is below the low-water mark must be taken
            self._stop_send_timer()

    def _await_reader(self) -> None:
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self._limits.send_s, self._send_late)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _send_late(self) -> None:
        metrics.REFUSED.labels("send_timeout_s").inc()
        log.warning("a connection was dropped: its answer was not taken within send_timeout_s, %g s", self._limits.send_s)
        self._drop()
