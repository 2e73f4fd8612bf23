"""Rollouts as verl's trainer itself writes them (`trainer.rollout_data_dir`, `trainer.validation_data_dir`): a file of JSON lines a step.

A line has `input` and `output` (prompt and response as one text each, without special tokens), `gts` (the row's ground truth), `score`,
`step`, and figures of the reward: see `_write_generations` in verl/trainer/ppo/v1/trainer_base.py, `_dump_generations` in ray_trainer.py.
Nothing in it tells which parts of a response the policy wrote, and which it was shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from research_rl.errors import DataError

FIELDS = ("input", "output", "gts", "score", "step")
_IDS = ("uid", "request_id")
Frame = tuple[str, str]  # how the prompts of a file begin and end: the template around their questions


def is_dump(row: Mapping[str, Any]) -> bool:
    """Return whether a row is one of verl's."""
    return all(name in row for name in FIELDS) and isinstance(row["input"], str) and isinstance(row["output"], str)


def frame_of(prompts: Sequence[str]) -> Frame:
    """Return what different prompts have in common at their beginning and end, in whole lines; nothing if there is only one."""
    if len(set(prompts)) < 2:
        return "", ""
    begin, end = _common_beginning(prompts), _common_beginning([text[::-1] for text in prompts])[::-1]
    return begin[: begin.rfind("\n") + 1], end[end.find("\n") :] if "\n" in end else ""


def _common_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # in alphabetical order, what these two have in common, all have
    return next((first[:place] for place, character in enumerate(first) if last[place : place + 1] != character), first)


def dump_record(row: Mapping[str, Any], frame: Frame = ("", "")) -> dict[str, Any]:
    """Return a row as a record of the viewer: the response as one text, whose author is not known. The question is the prompt without its
    frame; the figures are all numbers of the row.

    Raises:
        DataError: the score is no number.
    """
    if isinstance(row["score"], bool) or not isinstance(row["score"], int | float):
        raise DataError(f"score must be a number, got {row['score']!r:.80}")
    golden = row["gts"].get("target", row["gts"]) if isinstance(row["gts"], dict) else row["gts"]
    named = {name: row[name] for name in ("data_source", "type", "split") if isinstance(row.get(name), str)}
    return {
        **named,
        "uid": next((str(row[name]) for name in _IDS if isinstance(row.get(name), str | int)), ""),
        "step": row["step"],
        "question": _question(row["input"], frame),
        "prompt": row["input"],
        "response": row["output"],
        "stop_reason": "unknown",
        "golden_answers": [_told(one) for one in (golden if isinstance(golden, list) else [golden]) if one is not None],
        "metrics": {
            name: value for name, value in row.items() if isinstance(value, int | float) and name not in ("step", *_IDS)
        },
    }


def _question(prompt: str, frame: Frame) -> str:
    begin, end = frame
    framed = prompt.startswith(begin) and prompt.endswith(end) and len(begin) + len(end) < len(prompt)
    return (prompt[len(begin) : len(prompt) - len(end)].strip() if framed else "") or prompt


def _told(golden: Any) -> str:
    return golden if isinstance(golden, str) else json.dumps(golden, ensure_ascii=False)
