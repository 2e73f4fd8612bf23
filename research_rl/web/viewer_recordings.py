"""What other programs recorded, as the viewer shows it: JSON lines of conversations, whose `messages` are in OpenAI's form, or of verl's
rollouts (`viewer_dumps`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from research_rl.errors import DataError
from research_rl.methods.base import recorded
from research_rl.recordings import Said, lines_of, prompt_of, read_messages
from research_rl.scoring import REWARD
from research_rl.tools.formats import FORMATS
from research_rl.types import Action, Answer, Invalid, ToolCalls, Turn
from research_rl.web.viewer_dumps import FIELDS, Frame, dump_record, frame_of, is_dump

MESSAGES = "messages"
_LOOKED_AT = 100  # lines of a file in which a conversation is looked for
_KEPT = ("data_source", "type", "split")  # fields that are filters in the viewer
_CONVERSATIONS = f"conversations, each line with a list `{MESSAGES}`"
RECORDINGS = f"{_CONVERSATIONS}, or what verl writes to trainer.rollout_data_dir, each line with {', '.join(FIELDS)}"
_FOREIGN = {  # fields by which the rows of other programs are known: what to do with them
    ("prompt", "completion"): f"join the messages of prompt and completion to one list `{MESSAGES}`",
    ("custom_id", "response"): f"the output of a batch has no prompts: join each answer with the `{MESSAGES}` of its request",
}


def no_recording(path: Path) -> str:
    """Return why a file is no recording: what its first line lacks; empty if one of its first lines is of one."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return "its name ends neither in .jsonl nor in .jsonl.gz: write its rows as JSON lines"
    first = ""
    try:
        for number, row in islice(lines_of(path), _LOOKED_AT):
            if isinstance(row, dict) and (_messages(row) or is_dump(row)):
                return ""
            first = first or (str(row) if isinstance(row, DataError) else f"line {number} has {_lacking(row)}")
    except DataError as error:
        return first or str(error)
    return first or "it holds no line"


def _lacking(row: Mapping[str, Any]) -> str:
    hint = "".join(f" ({told})" for names, told in _FOREIGN.items() if all(name in row for name in names))
    return f"no list {MESSAGES!r}; its fields: {', '.join(map(repr, row)) or 'none'}{hint}"


def is_dumped(path: Path) -> bool:
    """Return whether the first line of a file is one of verl's own rollouts."""
    with suppress(DataError):
        return any(isinstance(row, dict) and is_dump(row) for _, row in islice(lines_of(path), 1))
    return False


def reader_of(path: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the function that makes records of a file's rows: `record_of`, which knows what the prompts of the first rows have in common.

    Raises:
        DataError: of the function, if a row holds neither form, or is malformed.
    """
    prompts = []
    with suppress(DataError):  # it is told when the rows are read
        for _, row in islice(lines_of(path), _LOOKED_AT):
            if isinstance(row, dict) and is_dump(row):
                prompts.append(row["input"])
    return partial(record_of, frame=frame_of(prompts))


def record_of(row: Mapping[str, Any], frame: Frame = ("", "")) -> dict[str, Any]:
    """Return a row as a record of the viewer; `frame` is for verl's rows (see `viewer_dumps`).

    Question, answer, golden answers and figures (`score`, `components`, `metrics`) of a conversation are those of the row, where it has
    them; else the question is the user's last message and the answer what the assistant said last.

    Raises:
        DataError: it holds neither form, or a malformed conversation (see `read_messages`), or another field has another form.
    """
    if not (messages := _messages(row)):
        if is_dump(row):
            return dump_record(row, frame)
        raise DataError(_lacking(row))
    question, said = read_messages(messages)
    told = recorded(_text(row, "question") or question, [_turn(one) for one in said])
    golden = row.get("golden_answers") or []
    last = told.turns[-1].action if told.turns else None
    return {
        **told.to_json(),
        **{name: _text(row, name) for name in _KEPT if name in row},
        "uid": _text(row, "id"),
        "prompt": prompt_of(messages),
        "golden_answers": golden if isinstance(golden, list) else [golden],
        "answer": _text(row, "answer") or (last.text if isinstance(last, Answer) else ""),
        "metrics": _metrics(row),
    }


def _messages(row: Mapping[str, Any]) -> list[Any]:
    found = row.get(MESSAGES)
    return found if isinstance(found, list) else []


def _turn(said: Said) -> Turn:
    calls = list(said.calls.values())
    # a recorded call has no text: it is written as most models write one
    written = [FORMATS["hermes"].write(call.name, call.arguments) for call in calls if not call.error]
    return Turn("\n".join(filter(None, [said.text, *written])), _action(said), "\n\n".join(said.results.values()))


def _action(said: Said) -> Action:
    if said.calls:
        return ToolCalls(tuple(said.calls.values()))
    answer = said.text.rpartition("</think>")[2].strip()
    return Answer(answer) if answer else Invalid("neither a call nor a text")


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the row's own figures; `score` and `components` are what `evaluation rescore` writes."""
    found: dict[str, float] = {}
    for name, begins in (("metrics", ""), ("components", REWARD)):
        figures = row.get(name) or {}
        if not isinstance(figures, dict) or not all(isinstance(value, int | float) for value in figures.values()):
            raise DataError(f"{name} must be an object of numbers, got {figures!r:.80}")
        found |= {f"{begins}{key}": value for key, value in figures.items()}
    if (score := row.get("score")) is not None:
        if not isinstance(score, int | float):
            raise DataError(f"score must be a number, got {score!r:.80}")
        found["score"] = score
    return found


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str | int | float):
        raise DataError(f"{name} must be a text, got {value!r:.80}")
    return "" if value is None else str(value)
