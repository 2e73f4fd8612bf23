"""The base class of all tools. To add a tool, subclass `Tool` in a new file and name its dotted path among the method's `tools`."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from research_rl.errors import ConfigError
from research_rl.types import OpenedPage, Passage, ToolCall

_NO_TOOLS = ("__init__", "base", "formats", "mcp", "mcp_session")  # files of this package that are not tools
_TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


class Service(Protocol):
    """The service that tools use, for example a `research_rl.retrieval.RetrievalClient`."""

    async def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """Return, per query, at most `top_k` passages, best first."""
        ...

    async def open(self, passage_id: str, page: int | None = None) -> OpenedPage | None:
        """Return a page of the document with a passage (default: the passage's page); None if there is no such passage or page."""
        ...


class Tool(ABC):
    """One tool. Stateless: one instance serves all rollouts of a process."""

    name: ClassVar[str]
    description: ClassVar[str]  # for the policy
    parameters: ClassVar[dict[str, Any]]  # JSON schema of an object whose properties are strings, integers, numbers or booleans
    max_calls: int | None = None  # in one rollout

    @property
    def outage_s(self) -> float:
        """How long the tool's own server has been unavailable, in seconds; 0 for a tool that uses `Service`."""
        return 0.0

    @property
    def longest_wait_s(self) -> float:
        """How long one call of the tool's own server may take, in seconds; 0 for a tool that uses `Service`."""
        return 0.0

    @abstractmethod
    async def call(self, service: Service, arguments: Mapping[str, Any], top_k: int) -> list[Passage]:
        """Return what the policy is shown. Text that is not a passage is returned as one with an empty id.

        Raises:
            RetrievalError: the service is unavailable. The rollout is discarded, never scored.
        """

    async def answer(self, service: Service, arguments: Mapping[str, Any], top_k: int, shown: Sequence[str]) -> list[Passage]:
        """Return what `call` does. A tool overrides this if it can tell the policy more when it knows `shown`: the ids of the passages that
        the policy was shown before, in order."""
        return await self.call(service, arguments, top_k)

    def schema(self) -> dict[str, Any]:
        """Return the tool as chat templates and OpenAI's API expect it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def wrong(self, arguments: Mapping[str, Any]) -> str:
        """Return what is wrong with a call's arguments, for the policy; empty if nothing is."""
        properties: Mapping[str, Any] = self.parameters["properties"]
        if missing := [name for name in self.parameters.get("required", ()) if name not in arguments]:
            return f"{self.name} needs {', '.join(missing)}"
        if unknown := [name for name in arguments if name not in properties]:
            return f"{self.name} takes {', '.join(properties)}; got {', '.join(map(str, unknown))}"
        for name, value in arguments.items():
            kind = properties[name]["type"]
            # a bool is an int in Python, and not in JSON
            if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
                return f"{name} must be of type {kind}"
            if isinstance(value, str) and not value.strip():
                return f"{name} is empty"
            if isinstance(value, str) and half_a_pair(value):
                return f"{name} holds half a surrogate pair"
        return ""


class Toolbox:
    """The tools of one rollout: it counts the calls of each."""

    def __init__(self, tools: Mapping[str, Tool], service: Service) -> None:
        self._tools, self._service = tools, service
        self._calls: Counter[str] = Counter()

    async def __call__(self, call: ToolCall, top_k: int, shown: Sequence[str] = ()) -> list[Passage]:
        """Return the result of a call; for a wrong call, or one beyond `max_calls`, an error message for the policy. `shown`: see
        `Tool.answer`.

        Raises:
            RetrievalError: see `Tool.call`.
        """
        if call.error:
            return [told(call.error)]
        tool = self._tools[call.name]
        self._calls[call.name] += 1
        if tool.max_calls is not None and self._calls[call.name] > tool.max_calls:
            return [told(f"{call.name} may be called {tool.max_calls} times, and no more")]
        return await tool.answer(self._service, call.arguments, top_k, shown)


def half_a_pair(text: str) -> bool:
    """Return whether a text holds half a surrogate pair, which has a form in JSON but not in UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def told(error: str) -> Passage:
    """Return the error message for the policy after a call that cannot be executed."""
    return Passage("", f"Error: {error}")


def load_tools(names: Sequence[str]) -> dict[str, Tool]:
    """Return tools by the name under which the policy calls them: files of this package (`search`), or dotted paths of `Tool` classes.

    Raises:
        ConfigError: a name or path leads to no `Tool`, none is given, or two have one name.
    """
    if isinstance(names, str) or not names:
        raise ConfigError(
            f"tools must be a list of names, not empty, got {names!r}; valid: {', '.join(tool_names())}, or dotted paths"
        )
    tools = [_load(name)() for name in names]
    found = {tool.name: tool for tool in tools}
    if len(found) < len(tools):
        raise ConfigError(f"every tool needs a name of its own, got {[tool.name for tool in tools]}")
    return found


def tool_names() -> list[str]:
    """Return the names of the tools of this package: its files."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in _NO_TOOLS)


def _load(path: str) -> type[Tool]:
    if "." not in path and path not in tool_names():
        raise ConfigError(f"no tool is called {path!r}; valid: {', '.join(tool_names())}, or the dotted path of a Tool class")
    module, _, attribute = path.rpartition(".") if "." in path else (f"research_rl.tools.{path}", "", "")
    try:
        found = vars(importlib.import_module(module))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"the tool {path!r} cannot be imported ({error}); give the dotted path of a Tool class") from error
    own = [one for one in found.values() if isinstance(one, type) and issubclass(one, Tool) and one.__module__ == module]
    kind = found.get(attribute) if attribute else own[0]
    if not (isinstance(kind, type) and issubclass(kind, Tool)):
        raise ConfigError(f"the tool {path!r} is no subclass of research_rl.tools.base.Tool")
    return kind
