"""How model families write a tool call. To add a format, put a `Format` into `FORMATS`.

Each format reads what the family's chat template tells the model to write. A call that cannot be read is a `ToolCall` with an error, not an
exception; whether a call suits its tool is checked elsewhere (`Tool.wrong`).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from research_rl.errors import ConfigError
from research_rl.types import ToolCall

_JSON = json.JSONDecoder()
_VALUE = frozenset('{["-0123456789tfnNI')  # what a value may begin with, NaN and Infinity included, which `json` reads
_NAME_END = re.compile(r"[>\n]")
Schemas = Mapping[str, Mapping[str, Any]]  # JSON schemas of the parameters, by tool


class Format(ABC):
    """The tool-call format of one model family."""

    tags: ClassVar[tuple[str, ...]]  # neutralised inside passages
    stands_alone: ClassVar[bool] = False  # nothing may be written before a call
    told_by: ClassVar[tuple[str, ...]]  # a chat template that holds all of these asks for this format

    @abstractmethod
    def read(self, text: str, schemas: Schemas) -> list[ToolCall]:
        """Return the calls in a policy's text, in order; empty if there is none."""

    @abstractmethod
    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Return a call as a policy that knows the format writes it."""


def broken(why: str) -> ToolCall:
    """Return a call that cannot be read."""
    return ToolCall("", {}, why)


def _of_json(found: Any, keys: tuple[str, ...]) -> ToolCall:
    """Return the call that a JSON value describes; `keys`: the names under which it may have its arguments."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
        return broken('a call is a JSON object with "name"')
    arguments = next((found[key] for key in keys if key in found), None)
    if not isinstance(arguments, dict):
        return broken(f'the call of {found["name"]} needs a JSON object "{keys[0]}"')
    return ToolCall(found["name"], arguments)


class Hermes(Format):
    """`<tool_call>` with JSON inside: Hermes, Qwen2.5, Qwen3.

    The JSON is read to its own end, so that a closing tag inside an argument does not end the call. (Servers that look for the tag first
    refuse such a call.)
    """

    tags = ("<tool_call>", "</tool_call>")
    told_by = ("<tool_call>", '{"name":')

    def read(self, text: str, schemas: Schemas) -> list[ToolCall]:
        opening, closing = self.tags
        last = text.rfind(closing)
        calls, at = [], 0
        while (start := text.find(opening, at)) >= 0:
            at = start + len(opening)
            try:
                found, end = _decode(text, _after_space(text, at))
            except (ValueError, RecursionError):
                calls.append(broken(f"what stands after {opening} is not JSON"))
            else:
                calls.append(_of_json(found, ("arguments",)))
                at = end
                if not text.startswith(closing, _after_space(text, end)):
                    calls[-1] = broken(f"{closing} is missing after a call")
            # a broken call ends at the closing tag
            if calls[-1].error and at <= last:
                at = text.index(closing, at) + len(closing)
        return calls

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"


def _decode(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value at a position, and where it ends.

    Raises:
        ValueError, RecursionError: there is none. `json` counts the lines before an error, so it is asked only where a value may begin.
    """
    if text[at : at + 1] not in _VALUE:
        raise ValueError
    return _JSON.raw_decode(text, at)


def _after_space(text: str, at: int) -> int:
    """Return where the white space that begins at a position ends."""
    while text[at : at + 1].isspace():
        at += 1
    return at


class Element(NamedTuple):
    """`<kind=NAME>content</kind>` in a text: where it starts and stops, and whether it is closed (if not, its content is the rest)."""

    start: int
    stop: int
    name: str
    content: str
    closed: bool


def elements(text: str, kind: str) -> list[Element]:
    """Return the elements of a kind, in order; a begin within one is a part of its content. A name is closed by `>` on its line."""
    opening, closing = f"<{kind}=", f"</{kind}>"
    found, start = [], text.find(opening)
    while start >= 0 and (end := _NAME_END.search(text, start)):
        at = end.end()
        if end[0] == ">":
            closed = (stop := text.find(closing, at)) >= 0
            content = text[at:stop] if closed else text[at:]
            at = stop + len(closing) if closed else len(text)
            found.append(Element(start, at, text[start + len(opening) : end.start()], content, closed))
        start = text.find(opening, at)
    return found


class QwenCoder(Format):
    """`<function=…>` with `<parameter=…>` inside: Qwen3-Coder, Qwen3.5. A value is a text; its type is the schema's."""

    tags = ("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>")
    told_by = ("<tool_call>", "<function=")

    def read(self, text: str, schemas: Schemas) -> list[ToolCall]:
        if "<function=" not in text:
            return [broken("a call holds <function=NAME>")] if "<tool_call>" in text else []
        calls = [self._call(function, schemas) for function in elements(text, "function")]
        return calls or [broken("<function=NAME> is not closed by >")]

    def _call(self, function: Element, schemas: Schemas) -> ToolCall:
        name, body = function.name.strip(), function.content
        if not function.closed:
            return broken("</function> is missing after a call")
        parameters = [element for element in elements(body, "parameter") if element.closed]
        between = zip(
            [0, *(element.stop for element in parameters)], [*(element.start for element in parameters), len(body)], strict=True
        )
        if any(body[start:stop].strip() for start, stop in between):
            return broken(f"the call of {name} holds something besides <parameter=NAME>…</parameter>")
        properties = schemas.get(name, {}).get("properties", {})
        values = {element.name.strip(): element.content.removeprefix("\n").removesuffix("\n") for element in parameters}
        return ToolCall(name, {key: _typed(value, _kinds(properties.get(key))) for key, value in values.items()})

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
        parameters = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _kinds(schema: Any) -> set[str]:
    """Return the types that a schema names, those of its alternatives included; empty: any."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", ())
    either = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return {named} if isinstance(named, str) else {*named, *(kind for one in either for kind in _kinds(one))}


def _typed(text: str, kinds: set[str]) -> Any:
    """Return a text parsed as JSON if the schema names another type than string, else the text; `Tool.wrong` checks the type."""
    if not kinds or "string" in kinds:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Llama3(Format):
    """The whole message is JSON, with `;` between several calls: Llama 3.1 to 3.3."""

    tags = ("<|python_tag|>",)
    stands_alone = True
    told_by = ('"parameters":', "ipython")

    def read(self, text: str, schemas: Schemas) -> list[ToolCall]:
        rest = text.strip()
        tagged = rest.startswith(self.tags[0])
        rest = rest.removeprefix(self.tags[0]).lstrip()
        # an answer may begin with a brace; a call's first key is "name"
        if not tagged and not re.match(r'\{\s*"(name|type|parameters|arguments)"\s*:', rest):
            return []
        calls: list[ToolCall] = []
        while rest:
            try:
                found, end = _JSON.raw_decode(rest)
            except (ValueError, RecursionError):
                return [*calls, broken("a call is one JSON object, several are separated by ;")]
            calls.append(_of_json(found, ("parameters", "arguments")))
            rest = rest[end:].lstrip()
            if rest and not rest.startswith(";"):
                return [*calls, broken("nothing but ; and another call may follow a call")]
            rest = rest.removeprefix(";").lstrip()
        return calls or [broken(f"no call after {self.tags[0]}")]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        return json.dumps({"name": name, "parameters": dict(arguments)}, ensure_ascii=False)


FORMATS: dict[str, Format] = {"hermes": Hermes(), "qwen_coder": QwenCoder(), "llama3": Llama3()}


def format_of(template: str) -> str | None:
    """Return the name of the format that a chat template asks its model for; None if it is unknown, or the template has no tools."""
    if "tools" not in template:
        return None
    # qwen_coder first: its templates contain <tool_call>, too
    order = ("qwen_coder", "hermes", "llama3")
    return next((name for name in order if all(mark in template.replace('\\"', '"') for mark in FORMATS[name].told_by)), None)


def load_format(name: str) -> Format:
    """Return a format by name.

    Raises:
        ConfigError: there is none such.
    """
    if name not in FORMATS:
        raise ConfigError(f"no tool-call format is called {name!r}; valid: {', '.join(FORMATS)}")
    return FORMATS[name]
