"""A record in the viewer's cache: columns for filters and sorting, texts for full-text search, and the whole record."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research_rl.scoring import REWARD, broken_rules
from research_rl.web.viewer_sources import EVALUATION, RECORDING

COLUMNS = (
    "source", "step", "validate", "split", "type", "data_source", "uid", "question", "golden_answers", "answer", "stop_reason",
    "score", "em", "searches", "well_formed", "attempt",
)  # fmt: skip  # names only


@dataclass(frozen=True)
class Row:
    """One trajectory; `values` are in the order of `COLUMNS`, `texts` are question, policy, observation, answer, and a response whose
    author is not known."""

    values: tuple[Any, ...]
    rules: set[str]
    texts: tuple[str, str, str, str, str]
    body: bytes

    def __getitem__(self, column: str) -> Any:
        return self.values[COLUMNS.index(column)]


def row(record: Mapping[str, Any], kind: str, label: str) -> Row:
    """Return the row of a record from a training's log, an evaluation or a recording.

    Raises:
        ValueError: it is not a trajectory, because a field has a wrong type.
    """
    try:
        return _row(record, kind, label)
    except (TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a trajectory: {error}") from error


def _row(record: Mapping[str, Any], kind: str, label: str) -> Row:
    about = {**record, **(record.get("metadata") or {}), "uid": record["id"]} if kind == EVALUATION else record
    metrics = {str(name): _number(value) for name, value in (record.get("metrics") or {}).items()}
    turns = list(record.get("turns") or ())
    golden = [_text(one) for one in record.get("golden_answers") or ()]
    step = about.get("step")
    named = {
        "source": label,
        "step": None if step is None else _small(step),
        "validate": None if kind == RECORDING else int(bool(about.get("validate", kind == EVALUATION))),
        **{
            name: _text(about.get(name))
            for name in ("split", "type", "data_source", "uid", "question", "answer", "stop_reason")
        },
        "golden_answers": " / ".join(golden),
        **{name: metrics.get(name) for name in ("score", "em", "searches", "well_formed")},
        "attempt": _number(record.get("attempt")) or 0.0,
    }
    rules = {_text(turn["action"].get("reason")) for turn in turns if (turn.get("action") or {}).get("kind") == "Invalid"}
    known = {name: value for name, value in metrics.items() if value is not None}
    components = {name.removeprefix(REWARD): value for name, value in known.items() if name.startswith(REWARD)}
    rules |= {_text(name) for name in broken_rules(components, known.get("well_formed"))}
    texts = (
        named["question"],
        "\n".join(_text(turn.get("text")) for turn in turns),
        "\n".join(_text(turn.get("observation")) for turn in turns),
        named["answer"],
        _text(record.get("response")),
    )
    body = zlib.compress(json.dumps(_finite(record), allow_nan=False).encode(), 1)
    return Row(tuple(named[name] for name in COLUMNS), rules, texts, body)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"a text is needed, got {type(value).__name__}")
    # half a surrogate pair has no form in UTF-8, and SQLite's texts end at a zero byte
    return "" if value is None else str(value).encode("utf-8", "replace").decode().replace("\0", " ")


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _small(value: Any) -> int:
    if int(value) != value or abs(value) >= 2**53:
        raise TypeError(f"a step is needed, got {value!r}")
    return int(value)


def _finite(value: Any) -> Any:
    """Return a JSON value without NaN and infinities, which JSON in a browser does not allow."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
