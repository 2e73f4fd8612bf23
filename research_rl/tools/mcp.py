"""The tools of an MCP server (Model Context Protocol), over streamable HTTP: the option `mcp` of a method that calls tools.

Names, descriptions and schemas come from the server, and are read once per process. A call returns the text of its result. An outage is
treated like one of the retrieval service, see `research_rl.outages`; a tool's own error is shown to the policy.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from research_rl.errors import ConfigError, MissingExtraError, WrongServiceError, missing_extra, nearest
from research_rl.limits import check_number
from research_rl.outages import Persistence, longest_wait_s
from research_rl.tools.base import Service, Tool, half_a_pair, told
from research_rl.types import Passage

if TYPE_CHECKING:
    from research_rl.tools.mcp_session import Session

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DEEPEST = 16  # most nested lists and objects in the arguments of a call


@dataclass(frozen=True)
class McpSettings:
    """Where the server is, which of its tools are used, and their limits (seconds, characters)."""

    url: str
    tools: tuple[str, ...] | None = None  # None: all of the server's
    deadline_s: float = 180.0  # for one call, retries included; after it there is one more attempt
    timeout_s: float = 30.0  # for one attempt
    max_attempts: int = 1_000
    max_concurrent: int = 32  # calls at once of each process
    max_tools: int = 16
    max_schema_characters: int = 8_000  # of all tools together, as JSON: they stand in every prompt
    max_result_characters: int = 20_000  # of one result; what is longer is cut
    # bearer token of a server that wants one; None: MCP_TOKEN of the environment, where no logged configuration shows it
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> McpSettings:
        """Check and return the option.

        Raises:
            ConfigError: a key is unknown, the URL is missing or malformed, or a limit is not positive.
        """
        valid = [one.name for one in fields(cls)]
        if not isinstance(section, Mapping) or not isinstance(section.get("url"), str):
            raise ConfigError(f"mcp needs the URL of a server, for example {{url: http://127.0.0.1:8001/mcp}}, got {section!r}")
        if unknown := sorted(set(section) - set(valid)):
            raise ConfigError(f"mcp: unknown keys {unknown}. {nearest(str(unknown[0]), valid)}")
        chosen = section.get("tools")
        if chosen is not None and (isinstance(chosen, str) or not chosen or not all(isinstance(name, str) for name in chosen)):
            raise ConfigError(f"mcp.tools must be a list of names, or null for all of the server's tools, got {chosen!r}")
        settings = cls(**{**section, "tools": None if chosen is None else tuple(chosen)})
        if not settings.url.startswith(("http://", "https://")):
            raise ConfigError(f"mcp.url must start with http:// or https://, got {settings.url!r}")
        for one in fields(cls):
            if one.type in ("int", "float"):
                whole = one.type == "int"
                what = f"a positive {'whole ' if whole else ''}number"
                check_number(f"mcp.{one.name}", getattr(settings, one.name), what, above=0, whole=whole)
        return settings


class McpTool(Tool):
    """One tool of a server."""

    def __init__(self, server: McpServer, name: str, description: str, parameters: dict[str, Any]) -> None:
        self._server = server
        self.name, self.description, self.parameters = name, description, parameters  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._server.settings.url

    @property
    def outage_s(self) -> float:
        return self._server.persistence.outage_s

    @property
    def longest_wait_s(self) -> float:
        return longest_wait_s(self._server.settings.deadline_s, self._server.settings.timeout_s)

    def wrong(self, arguments: Mapping[str, Any]) -> str:
        """Check for missing arguments, and for values that cannot be sent. The server checks the rest of the schema."""
        if missing := [name for name in self.parameters.get("required", ()) if name not in arguments]:
            return f"{self.name} needs {', '.join(missing)}"
        return _unsendable(arguments, _DEEPEST)

    async def call(self, service: Service, arguments: Mapping[str, Any], top_k: int) -> list[Passage]:
        return await self._server.call(self.name, dict(arguments))


class McpServer:
    """One server, for all rollouts of a process. Make it by `server_of`."""

    def __init__(self, settings: McpSettings) -> None:
        """Read the server's tools.

        Raises:
            ConfigError: no MCP server answers, it lacks a tool that was named, or its tools exceed a limit.
            MissingExtraError: the package `mcp` is not installed.
        """
        self.settings = settings
        self.persistence = Persistence(
            f"the MCP server at {settings.url}",
            "Is it running, and reachable from here?",
            settings.deadline_s,
            settings.timeout_s,
            settings.max_attempts,
        )
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, Session] = WeakKeyDictionary()
        self._known: dict[str, dict[str, Any]] = {}
        self._read()
        self.tools = [McpTool(self, name, **described) for name, described in self._known.items()]

    def _read(self) -> None:
        async def read() -> None:
            session = self._session()
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    await session.open()
            finally:
                await session.close()
                del self._sessions[asyncio.get_running_loop()]

        with ThreadPoolExecutor(1) as thread:  # a thread of its own, because an event loop may be running in this one
            try:
                thread.submit(asyncio.run, read()).result()
            except (ConfigError, MissingExtraError):
                raise
            except Exception as error:
                why = str(error) or f"no answer within {self.settings.timeout_s:g} s"
                raise ConfigError(
                    f"the MCP server at {self.settings.url} does not list its tools ({why}): is it running, is the "
                    "URL right (it often ends in /mcp), and does it want a token (MCP_TOKEN)?"
                ) from error

    def _session(self) -> Session:
        try:
            from research_rl.tools.mcp_session import Session
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "mcp", "mcp") from error
        loop, settings = asyncio.get_running_loop(), self.settings
        if loop not in self._sessions:
            token = settings.token or os.environ.get("MCP_TOKEN")
            self._sessions[loop] = Session(settings.url, token, settings.timeout_s, settings.max_concurrent, self._check)
        return self._sessions[loop]

    def _check(self, listed: Sequence[Any]) -> None:
        """Check the tools that the server lists as a session is opened. Raises ConfigError in the first session, else WrongServiceError."""
        from research_rl.tools.mcp_session import wrong_schema

        found = {
            tool.name: {"description": tool.description or "", "parameters": _schema(tool.input_schema)} for tool in listed
        }
        chosen = self.settings.tools or tuple(found)
        url = self.settings.url
        if missing := [name for name in chosen if name not in found]:
            kind = WrongServiceError if self._known else ConfigError
            raise kind(f"the MCP server at {url} has no tool {missing[0]!r}. {nearest(missing[0], found)}")
        taken = {name: found[name] for name in chosen}
        if self._known:
            if taken != self._known:
                raise WrongServiceError(
                    f"the MCP server at {url} now has other tools, or other descriptions of them, than when this run began"
                )
            return
        if not taken or len(taken) > self.settings.max_tools:
            raise ConfigError(
                f"the MCP server at {url} has {len(taken)} tools, mcp.max_tools={self.settings.max_tools}: name some in mcp.tools"
            )
        if odd := [name for name in taken if not _NAME.fullmatch(name)]:
            raise ConfigError(
                f"the MCP server at {url} has a tool whose name cannot be used in a call: {odd[0]!r}; name others in mcp.tools"
            )
        for name, described in taken.items():
            if wrong := wrong_schema(described["parameters"]):
                raise ConfigError(
                    f"the MCP server at {url} has a tool, {name}, whose arguments are not described by a JSON schema ({wrong}); name "
                    "others in mcp.tools"
                )
        if (size := len(json.dumps(taken))) > (most := self.settings.max_schema_characters):
            raise ConfigError(
                f"the tools of the MCP server at {url} take {size:,} characters of every prompt, mcp.max_schema_characters={most:,}: name "
                f"some in mcp.tools ({', '.join(taken)}), or raise it"
            )
        self._known = taken

    async def call(self, name: str, arguments: dict[str, Any]) -> list[Passage]:
        """Return the text of a result, or an error message for the policy.

        Raises:
            QueryFailedError: this call gets no answer while others are answered.
            RetrievalError: the server is unavailable.
        """
        from research_rl.tools.mcp_session import CallRefusedError

        async def ask(_: bool) -> list[Passage]:
            try:
                result = await self._session().call(name, arguments)
            except CallRefusedError as error:  # an answer, too
                return [told(str(error)[: self.settings.max_result_characters])]
            text = _text(result.content)[: self.settings.max_result_characters]
            return [told(text or "the tool failed") if result.is_error else Passage("", text or "(no text)")]

        return await self.persistence.persist(ask, f"a call of {name}", f"the call: {name} {str(arguments)[:200]}")


@cache
def server_of(settings: McpSettings) -> McpServer:
    """Return this process's server of these settings."""
    return McpServer(settings)


def load_mcp(section: Mapping[str, Any]) -> dict[str, Tool]:
    """Return the tools of the option `mcp`, by name. Raises what `McpSettings.from_mapping` and `McpServer` raise."""
    return {tool.name: tool for tool in server_of(McpSettings.from_mapping(section)).tools}


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of arguments with the keys that templates and formats expect."""
    return {"type": "object", "properties": {}, **schema}


def _text(content: Sequence[Any]) -> str:
    blocks = (getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None) for block in content)
    return "\n".join(text for text in blocks if text)


def _unsendable(value: Any, depth: int) -> str:
    """Return why a value has no form in JSON or UTF-8, as a message for the policy; empty if it has one."""
    if isinstance(value, str):
        return "a text holds half a surrogate pair" if half_a_pair(value) else ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number of JSON"
    if not isinstance(value, (dict, list)):
        return ""
    if not depth:
        return f"lists and objects are nested more than {_DEEPEST} deep"
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return next((wrong for part in parts if (wrong := _unsendable(part, depth - 1))), "")
