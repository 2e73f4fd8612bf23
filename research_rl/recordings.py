"""Recordings of other software: files of JSON lines, and conversations in them as messages in OpenAI's format: `role`, `content`, an
assistant's `tool_calls`, a tool's `tool_call_id` (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from research_rl.errors import DataError
from research_rl.types import ToolCall

LONGEST_LINE = 64 << 20  # bytes; some kilobytes of gzip can hold gigabytes without a line feed
_THOUGHT = ("reasoning", "reasoning_content")  # fields for a thought that a server has taken out of the content


def lines_of(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Yield the number (from 1) and the object of every line of a file of JSON lines (.gz too) that is not blank; for a line without an
    object, an error in its place.

    Raises:
        DataError: the file is missing, cannot be read, or has a line of more than `LONGEST_LINE`.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {number} is longer than {LONGEST_LINE >> 20} MiB: write one JSON object per line"
                    )
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read{' as gzip of UTF-8' * (path.suffix == '.gz')} ({error})") from None


def _object(line: bytes, place: str) -> dict[str, Any] | DataError:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return DataError(f"{place}: it cannot be read as UTF-8 ({error})")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nesting too deep
        return DataError(f"{place}: not JSON ({error}), got {text.strip()[:80]!r}")
    return row if isinstance(row, dict) else DataError(f"{place}: a JSON object is needed, got {text.strip()[:80]!r}")


@dataclass
class Said:
    """What an assistant said in one message, its calls, and their results by the call's id, in order."""

    text: str
    calls: dict[str, ToolCall]
    results: dict[str, str] = field(default_factory=dict)


def read_messages(messages: Sequence[Any]) -> tuple[str, list[Said]]:
    """Return the question (the user's last message before the assistant's first) and what the assistant said.

    Arguments that are no JSON object make a `ToolCall` with an error. A thought in a field of its own is put between `<think>` tags.

    Raises:
        DataError: a message has another role or form, belongs to no call, or the user speaks again; or a call has no result although the
            conversation goes on.
    """
    question, said = "", []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("system", "developer", "user"):
            if said:
                raise DataError(f"message {number} is of the {role}, after the assistant's: a recording holds one question")
            question = _text(message, number) if role == "user" else question
        elif role == "assistant":
            _check_answered(said, number)
            said.append(Said(_thought(message) + _text(message, number), _calls(message, number)))
        elif role == "tool":
            call = str(message.get("tool_call_id"))
            if not said or call not in said[-1].calls or call in said[-1].results:
                raise DataError(
                    f"message {number} answers the call {call!r}, which the message of the assistant before it does not make"
                )
            said[-1].results[call] = _text(message, number)
        else:
            raise DataError(f"message {number} needs a role: system, user, assistant or tool; got {message!r:.80}")
    return question, said


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what stands before the assistant's first words in a conversation that `read_messages` reads: each message after its role."""
    said = [(message["role"], _text(message, number)) for number, message in enumerate(messages, 1)]
    return "\n\n".join(f"{role}: {text}" for role, text in said if role not in ("assistant", "tool"))


def _check_answered(said: list[Said], number: int) -> None:
    if said and (open_calls := set(said[-1].calls) - set(said[-1].results)):
        raise DataError(f"before message {number}, the calls {sorted(open_calls)} have no result")


def _thought(message: Mapping[str, Any]) -> str:
    thought = next((message[name] for name in _THOUGHT if message.get(name)), "")
    return f"<think>\n{thought}\n</think>\n\n" if thought else ""


def _text(message: Mapping[str, Any], number: int) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    found = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise DataError(f"message {number} needs a text as content, or a list of texts, got {content!r:.80}")
    return "".join(texts)


def _calls(message: Mapping[str, Any], number: int) -> dict[str, ToolCall]:
    try:
        made = [(str(call["id"]), _call(call["function"])) for call in message.get("tool_calls") or ()]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"message {number}: tool_calls must be a list of {{id, function: {{name, arguments}}}} ({error!r})"
        ) from None
    calls = dict(made)
    if len(calls) < len(made):
        raise DataError(f"message {number} makes two calls of one id: {', '.join(id for id, _ in made)}")
    return calls


def _call(function: Mapping[str, Any]) -> ToolCall:
    name, arguments = str(function["name"]), function["arguments"]
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return ToolCall("", {}, f"the arguments of {name} are no JSON object: {arguments!r:.80}")
    return ToolCall(name, found)
