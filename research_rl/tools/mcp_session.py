"""A session with an MCP server (Model Context Protocol) over streamable HTTP, by the official client: opened when it is needed, shared by
all tasks of an event loop, and opened again when it is lost.

Failures come out as `research_rl.outages` and `research_rl.errors` name them. When one request fails, the official client ends the
session with everything under way, and hides the HTTP status. So requests go through `_Steady`, which turns failures into MCP errors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
from jsonschema import SchemaError
from jsonschema.validators import validator_for
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import CONNECTION_CLOSED, PARSE_ERROR, REQUEST_TIMEOUT, CallToolResult, Tool

from research_rl.errors import ConfigError, WrongServiceError
from research_rl.outages import RETRIED_STATUS, UnavailableError, lost_at_once

# codes that the protocol leaves free; servers may answer _BUSY, too, as `rag-serving mcp` does while its service does not answer
_GONE, _BUSY, _REFUSED, _LOST = -32_050, -32_051, -32_052, -32_053
_HEADERS = ("content-type", "mcp-session-id", "location")  # of an answer, those that the client reads
_MOST_BYTES = 1_000_000  # of an answer
_MOST_PAGES = 20  # of the list of tools


class CallRefusedError(Exception):
    """The server answered a call with an error: for the policy to read."""


class _Steady(httpx2.AsyncBaseTransport):
    """Returns an MCP error if there is no answer, and cuts off an answer that is too large."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            with lost_at_once(httpx2.ReadError):
                response = await self._inner.handle_async_request(request)
            status, kind = response.status_code, response.headers.get("content-type", "")
            if status in RETRIED_STATUS:
                return await _instead(response, request, _BUSY, f"HTTP {status}")
            if status in (401, 403):
                return await _instead(response, request, _REFUSED, f"HTTP {status}")
            if status == 404 and "mcp-session-id" in request.headers:
                return await _instead(response, request, _LOST, "the session is lost")
            # without content-encoding, so that nothing is decompressed
            headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
            stream = _Bounded(response)
            if kind.startswith("text/event-stream"):
                return httpx2.Response(status, headers=headers, stream=stream, request=request)
            body = b"".join([chunk async for chunk in stream])
            await response.aclose()
            return httpx2.Response(status, headers=headers, content=body, request=request)
        except httpx2.TransportError as error:
            return _error(request, _GONE, f"{type(error).__name__}: {error}")

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of an answer, cut off at a limit. What is left is no valid JSON, so that the client reports an error to the call."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MOST_BYTES
        assert isinstance(self._response.stream, httpx2.AsyncByteStream)
        async for chunk in self._response.stream:
            if len(chunk) > left:
                yield chunk[:left] + b"\n\n"  # ends the event of a stream
                return
            left -= len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


async def _instead(response: httpx2.Response, request: httpx2.Request, code: int, why: str) -> httpx2.Response:
    await response.aclose()
    return _error(request, code, why)


def _error(request: httpx2.Request, code: int, why: str) -> httpx2.Response:
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": why}})
    return httpx2.Response(400, headers={"content-type": "application/json"}, content=body.encode(), request=request)


class Session:
    """One event loop's session. `check` gets the server's tools whenever it is opened."""

    def __init__(
        self, url: str, token: str | None, timeout_s: float, most_calls: int, check: Callable[[list[Tool]], None]
    ) -> None:
        """`timeout_s`: for one call; at most `most_calls` are under way."""
        self._url, self._timeout_s, self._check = url, timeout_s, check
        self._headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {token}"} if token else {})}
        self._places, self._opening = asyncio.Semaphore(most_calls), asyncio.Lock()
        self._client: Client | None = None
        self._owner: asyncio.Task[None] | None = None

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Return what a tool gives.

        Raises:
            CallRefusedError: the server answers, but with an error.
            UnavailableError: there is no answer; time may heal it.
            WrongServiceError: it refuses every call, or what answers is no MCP server.
        """
        async with self._places:
            client = await self._opened()
            try:
                return await client.call_tool(name, arguments, read_timeout_seconds=self._timeout_s)
            except MCPError as error:
                # after an outage another server may answer: open a new session, which checks its tools again
                if error.code in (_GONE, _LOST, CONNECTION_CLOSED) and client is self._client:
                    await self.close()
                raise self._told(error) from error
            except (ValueError, RuntimeError) as error:  # not a result, or not in the schema that the tool declares
                if client is not self._client:  # it was closed before the call was sent
                    raise UnavailableError("the session was closed") from error
                raise CallRefusedError(f"the tool's result is not what it declares: {error}") from error

    async def open(self) -> None:
        """Open it, if it is not open. Raises UnavailableError and WrongServiceError, see `call`, and what `check` raises."""
        await self._opened()

    async def _opened(self) -> Client:
        async with self._opening:
            client = self._client
            if client is None:
                ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._owner = asyncio.create_task(self._own(ready))
                try:
                    client = await asyncio.shield(ready)
                except asyncio.CancelledError:
                    await self.close()
                    raise
                self._client = client
            return client

    async def _own(self, ready: asyncio.Future[Client]) -> None:
        """Hold the session from its opening to its end: the client's context must be left in the task that entered it."""
        client = None
        try:
            async with (
                httpx2.AsyncClient(headers=self._headers, timeout=self._timeout_s, transport=_Steady()) as http,
                Client(
                    streamable_http_client(self._url, http_client=http, terminate_on_close=False, max_sse_event_size=None),
                    read_timeout_seconds=self._timeout_s,
                ) as client,
            ):
                # a result is shown as text; a server's schema for it can take days to check (a regular expression), and blocks the loop
                client.session.validate_tool_result = _unchecked
                self._check(await _listed(client))
                ready.set_result(client)
                await asyncio.Event().wait()
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if not ready.done():
                ready.set_exception(self._told(error, opening=True))
        finally:
            if self._client is client:
                self._client = None

    def _told(self, error: Exception, opening: bool = False) -> Exception:
        """Translate an error of the client into one that `call` raises."""
        if isinstance(error, MCPError):
            if error.code in (_GONE, _BUSY, _LOST, CONNECTION_CLOSED, REQUEST_TIMEOUT):
                return UnavailableError(str(error))
            if error.code == PARSE_ERROR and not opening:
                return CallRefusedError(f"the result cannot be read, or has more than {_MOST_BYTES:,} bytes")
            if error.code != _REFUSED and not opening:
                return CallRefusedError(str(error))
        elif isinstance(error, (OSError, httpx2.TransportError)) and not isinstance(error, WrongServiceError):
            return UnavailableError(f"{type(error).__name__}: {error}")
        if isinstance(error, (ConfigError, WrongServiceError)):  # raised by `check`
            return error
        return WrongServiceError(f"the server at {self._url} cannot be used as an MCP server: {error}")

    async def close(self) -> None:
        """End the session; calls that are under way fail as `UnavailableError`."""
        owner, self._owner, self._client = self._owner, None, None
        if owner is not None:
            owner.cancel()
            await asyncio.wait([owner])


async def _unchecked(name: str, result: CallToolResult) -> None:
    pass


async def _listed(client: Client) -> list[Tool]:
    tools, cursor = [], None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor, cache_mode="bypass")
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return tools


def wrong_schema(schema: dict[str, Any]) -> str:
    """Return what is wrong with a JSON schema; empty if nothing is."""
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        return f"{error.json_path}: {error.message:.200}"
    return ""
