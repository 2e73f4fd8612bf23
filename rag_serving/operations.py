"""Around every request: its id, who may ask, how large and how slow it may be, what is counted and logged.

One plain ASGI layer, outside of FastAPI, so that a body that is too large or a token that is wrong costs nothing further.
Log lines never hold a query above DEBUG, and never a passage.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic_core import to_json

from rag_serving import metrics
from rag_serving.indexes import Indexes, below_root
from rag_serving.leaving import ClientLeft, WhileWaiting
from rag_serving.logs import access as log
from rag_serving.logs import request_id
from rag_serving.service import Refused, searched_index
from rag_serving.settings import Settings

Direct = Callable[[bytes], Awaitable[bytes]]
MOST_BODIES = 32  # of max_body_bytes each: what all requests that are being received or answered may hold together
OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health"})  # neither a prober nor a browser that opens the page has a token
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNPRINTABLE = re.compile(r"[^ -~]")  # an index is named by whoever made it: a line break would begin another header


class Guard:
    """ASGI middleware; the limits are those of the settings."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        paths: frozenset[str],
        direct: dict[str, Direct] | None = None,
        indexes: Indexes | None = None,
    ) -> None:
        """`paths` are the application's own: others are counted together, so that strangers cannot fill the metrics with names.

        POST to a path of `direct` is answered by that, from body to body, without the application. `indexes` are those that a path may
        name; None: none.
        """
        self._app, self._settings, self._paths, self._direct, self._indexes = app, settings, paths, direct or {}, indexes
        # a prefix and a counter: a random number for each request costs as much as searching a small index
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)
        self._held = 0  # bytes of all bodies that are being received or answered
        self._uploads: dict[_Upload, None] = {}  # those that are being received, the one that began first before the others
        self._tokens = [token.get_secret_value().encode() for token in settings.tokens]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if self._indexes is not None:
            scope = self._indexes.enter(scope)
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else f"{self._prefix}{next(self._numbers):08x}"
        token, untold = request_id.set(name), searched_index.set("")
        asked = below_root(scope)
        path = asked if asked in self._paths else "other"
        started, status, upload = time.perf_counter(), 0, _Upload()

        async def tagged(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(b"x-request-id", name.encode())]
                if index := searched_index.get():
                    told.append((b"x-index-id", _UNPRINTABLE.sub("?", index).encode()))
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        try:
            try:
                self._admit(asked, headers)
                if self._indexes is not None:
                    self._indexes.service()  # refuses a path that names an unknown index, whatever comes after it
                body = await self._body(receive, upload)
                if body is not None and scope["method"] == "POST" and asked in self._direct:
                    with WhileWaiting(receive):
                        answer = await self._direct[asked](body)
                    await _send(tagged, 200, answer)
                elif body is not None:
                    await self._app(scope, _replayed(body, receive), tagged)
            except Refused as refused:
                if not status:
                    await respond(refused, tagged)
            except ClientLeft:
                status = 499  # as nginx counts it; nobody reads it
        finally:
            self._held -= upload.held
            seconds = time.perf_counter() - started
            metrics.REQUESTS.labels(path, str(status)).inc()
            metrics.REQUEST_SECONDS.labels(path).observe(seconds)
            level = logging.DEBUG if path in OPEN_PATHS or path == "/metrics" else logging.INFO
            if log.isEnabledFor(level):
                fields = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 1)}
                log.log(level, "%(method)s %(path)s %(status)s %(ms)s ms", fields, extra=fields)
            request_id.reset(token)
            searched_index.reset(untold)

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._tokens and path not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # all tokens are compared, so that the time taken does not tell which one was close
            if scheme.lower() != b"bearer" or not sum(hmac.compare_digest(given.strip(), token) for token in self._tokens):
                raise Refused(401, "token", "a valid token is needed: send the header Authorization: Bearer TOKEN")
        length = headers.get(b"content-length", b"0")
        # Python makes no number of thousands of digits
        if length.isdigit() and (len(length) > 18 or int(length) > self._settings.max_body_bytes):
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, "max_body_bytes", f"the request is larger than max_body_bytes, {self._settings.max_body_bytes}")

    async def _body(self, receive: Any, upload: _Upload) -> bytes | None:
        """Return the request's body, or None if the client left. Read whole, for JSON needs it whole."""
        pieces = []
        limit = self._settings.receive_timeout_s
        try:
            async with asyncio.timeout(limit) as upload.clock:
                self._uploads[upload] = None
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    pieces.append(message.get("body", b""))
                    self._hold(upload, len(pieces[-1]))
                    if not message.get("more_body", False):
                        if upload.dropped:  # a moment ago: its bytes are counted no more
                            raise self._no_room()
                        return b"".join(pieces)
        except TimeoutError:
            if upload.dropped:
                raise self._no_room() from None
            raise Refused(
                408, "receive_timeout_s", f"the request took longer to arrive than receive_timeout_s, {limit:g}"
            ) from None
        finally:
            self._uploads.pop(upload, None)

    def _hold(self, upload: _Upload, size: int) -> None:
        """Count a piece of a body. If there is no room for it, the upload that began first makes way: it has had most time.

        Raises:
            Refused: the body is too large, or there is no room, and no other upload that could make way.
        """
        upload.held += size
        self._held += size
        if upload.held > self._settings.max_body_bytes:
            raise self._too_large()
        over = self._held - MOST_BODIES * self._settings.max_body_bytes
        if over <= 0:
            return
        others = [other for other in self._uploads if other is not upload]
        if sum(other.held for other in others) < over:
            raise self._no_room()
        for oldest in others:
            if over > 0 and oldest.held:
                freed = oldest.drop()
                self._held, over = self._held - freed, over - freed

    @staticmethod
    def _no_room() -> Refused:
        return Refused(503, "max_body_bytes", "other requests take the memory that there is for bodies; ask again", 1)


class _Upload:
    """A body that is being received, and how many of its bytes are held."""

    def __init__(self) -> None:
        self.held, self.dropped = 0, False
        self.clock: asyncio.Timeout | None = None

    def drop(self) -> int:
        """End it; return the bytes that it held."""
        freed, self.held, self.dropped = self.held, 0, True
        if self.clock is not None and not self.clock.expired():
            self.clock.reschedule(asyncio.get_running_loop().time())
        return freed


def _replayed(body: bytes, receive: Any) -> Any:
    """Return a `receive` that gives the body once, and then what comes after it: the client's leaving."""
    first: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Any:
        return first.pop() if first else await receive()

    return replayed


async def respond(refused: Refused, send: Any) -> None:
    """Send a refusal as JSON (`wire.Problem`)."""
    body = problem(refused.reason, str(refused))
    headers = []
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(refused.retry_after_s).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 413) or refused.reason == "max_body_bytes":
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await _send(send, refused.status, body, headers)


def problem(reason: str, detail: str) -> bytes:
    """Count a refusal and return its JSON (`wire.Problem`)."""
    metrics.REFUSED.labels(reason).inc()
    return to_json({"detail": detail, "reason": reason, "request_id": request_id.get()})


async def _send(send: Any, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
