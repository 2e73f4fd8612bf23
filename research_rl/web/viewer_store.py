"""The viewer's queries on a run's cache: filtered lists, one trajectory, all rollouts of a question, curves and alarms."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from research_rl.errors import DataError
from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_rows import COLUMNS

ORDERS = {
    "first": "step NULLS LAST, id",
    "last": "step DESC, id DESC",
    "best": "score DESC, id DESC",
    "worst": "score NULLS LAST, id",
}  # what is shown first
EQUAL = ("source", "step", "validate", "split", "stop_reason", "data_source", "type", "question", "em")  # filters by one value
FACETS = ("source", "step", "validate", "split", "stop_reason", "data_source", "type")  # filters offered with their counts
PAGE = 50
MOST_POINTS = 1_000  # of a curve
MOST_TOLD = 20  # lines that were left out, with the reason
_SHORT = f"key, {', '.join(COLUMNS)}, superseded"
_WORD = re.compile(r'(?:(question|policy|observation|answer):)?(?:"([^"]*)"|(\S+))')


def words(query: str) -> str:
    """Return a search in FTS5's syntax: every word or "phrase" must occur, the last word may be a beginning; `policy:word` searches one
    column. Empty if there is nothing to search for."""
    found = []
    for match in _WORD.finditer(query.replace("\0", " ")):
        column, phrase, word = match.groups()
        text = (phrase if phrase is not None else word).replace('"', " ")
        if any(character.isalnum() for character in text):
            goes_on = "*" if phrase is None and len(text) > 1 and match.end() == len(query) else ""
            found.append(f'{column + " : " if column else ""}"{text}"{goes_on}')
    return " AND ".join(found)


def _where(asked: Mapping[str, str]) -> tuple[str, list[Any]]:
    match = words(asked.get("q", ""))
    # the plus keeps SQLite from walking this index and testing each row for the words: the full-text search must come first
    conditions, values = [f"{'+' if match else ''}superseded = 0"], []
    for name in EQUAL:
        if (value := asked.get(name)) is not None:
            conditions.append(f"{name} IS ?")
            number = name in ("step", "validate", "em")
            values.append(_number(name, value) if number and value != "" else None if number else value)
    for name, sign in (("min", ">="), ("max", "<=")):
        if asked.get(name):
            conditions.append(f"score {sign} ?")
            values.append(_number(name, asked[name]))
    if asked.get("rule"):
        conditions.append("id IN (SELECT id FROM rule WHERE name = ?)")
        values.append(asked["rule"])
    if match:
        conditions.append("id IN (SELECT rowid FROM words WHERE words MATCH ?)")
        values.append(match)
    return " AND ".join(conditions), values


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{name} must be a number, got {text!r}") from error


def listed(cache: Cache, asked: Mapping[str, str], offset: int = 0, order: str = "first") -> dict[str, Any]:
    """Return how many trajectories pass the filters, and a page of them.

    `asked`: a value per name of `EQUAL`, `min` and `max` of the score, `rule`, `q` (see `words`).

    Raises:
        DataError: a filter's value or the order is invalid.
    """
    if order not in ORDERS:
        raise DataError(f"order={order!r} is unknown; valid: {', '.join(ORDERS)}")
    where, values = _where(asked)
    with cache.connection() as connection:
        ids = [
            row[0] for row in connection.execute(f"SELECT id FROM trajectory WHERE {where} ORDER BY {ORDERS[order]}", values)
        ]
        rows = f"SELECT {_SHORT} FROM trajectory WHERE id = ?"
        page = [dict(connection.execute(rows, (number,)).fetchone()) for number in ids[offset : offset + PAGE]]
    return {"total": len(ids), "rows": page}


def facets(cache: Cache) -> dict[str, Any]:
    """Return, per name of FACETS, its values with their counts; as `rule`, the broken rules with theirs."""
    with cache.connection() as connection:
        names, counts = ", ".join(FACETS), {name: Counter() for name in FACETS}
        for *values, count in connection.execute(
            f"SELECT {names}, count(*) FROM trajectory WHERE superseded = 0 GROUP BY {names}"
        ):
            for name, value in zip(FACETS, values, strict=True):
                counts[name][value] += count
        found: dict[str, Any] = {
            name: sorted(([value, count] for value, count in counted.items()), key=lambda one: (one[0] is None, one[0]))
            for name, counted in counts.items()
        }
        current = "rule CROSS JOIN trajectory USING (id) WHERE superseded = 0"
        rules = f"SELECT name, count(*) FROM {current} GROUP BY name ORDER BY 2 DESC LIMIT 200"
        found["rule"] = [list(row) for row in connection.execute(rules)]
    return found


def state(cache: Cache) -> dict[str, Any]:
    """Return how much of the run has been read, and why lines of a recording were left out. `version` changes with every record."""
    with cache.connection() as connection:
        newest, superseded = connection.execute(
            "SELECT max(id), (SELECT count(*) FROM trajectory WHERE superseded = 1) FROM trajectory"
        ).fetchone()
        left_out = [
            tuple(row) for row in connection.execute("SELECT line, why FROM left_out ORDER BY line LIMIT ?", (MOST_TOLD,))
        ]
        version, damaged = connection.execute("SELECT total(records), total(damaged) FROM part").fetchone()
    return {
        "path": str(cache.run),
        "trajectories": (newest or 0) - int(superseded),
        "superseded": int(superseded),
        "version": int(version),
        "damaged": int(damaged),
        "read_bytes": cache.read_bytes,
        "total_bytes": cache.total_bytes,
        "filled": cache.filled,
        "told": cache.told,
        "left_out": [f"line {line}: {why}" for line, why in left_out],
    }


def one(cache: Cache, key: str) -> dict[str, Any] | None:
    """Return a trajectory: its columns, the rules that it broke, and the record as `record`; None if there is none with this key."""
    with cache.connection() as connection:
        row = connection.execute(f"SELECT id, {_SHORT} FROM trajectory WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        rules = [name for (name,) in connection.execute("SELECT name FROM rule WHERE id = ? ORDER BY name", (row["id"],))]
        data = connection.execute("SELECT data FROM body WHERE id = ?", (row["id"],)).fetchone()[0]
    found = dict(row)
    del found["id"]
    return {**found, "rules": rules, "record": json.loads(zlib.decompress(data))}


def same_question(cache: Cache, question: str) -> list[dict[str, Any]]:
    """Return the trajectories of a question, at every step and of every stage; at most 500."""
    short = "key, source, step, validate, split, score, em, answer"
    asked = (
        f"SELECT {short} FROM trajectory WHERE question = ? AND superseded = 0 ORDER BY source, validate, step, id LIMIT 500"
    )
    with cache.connection() as connection:
        return [dict(row) for row in connection.execute(asked, (question,))]


def metric_names(cache: Cache) -> list[str]:
    """Return the names of a run's metrics."""
    with cache.connection() as connection:
        return [name for (name,) in connection.execute("SELECT DISTINCT name FROM metric ORDER BY name")]


def curve(cache: Cache, name: str) -> dict[str, list[list[float]]]:
    """Return points [step, value] per stage; for a long curve every n-th point, with the last."""
    points: dict[str, list[list[float]]] = {}
    with cache.connection() as connection:
        for label, step, value in connection.execute(
            "SELECT label, step, value FROM metric WHERE name = ? ORDER BY label, step", (name,)
        ):
            points.setdefault(label, []).append([step, value])
    return {label: found[-1 :: -(len(found) // MOST_POINTS + 1)][::-1] for label, found in points.items()}


def alarms(cache: Cache) -> list[dict[str, Any]]:
    """Return the alarms of a run's health.jsonl, with the stage they belong to as `source`."""
    with cache.connection() as connection:
        rows = connection.execute("SELECT label, step, data FROM alarm ORDER BY step, id LIMIT 1000").fetchall()
    return [{**json.loads(data), "source": label, "step": step} for label, step, data in rows]
