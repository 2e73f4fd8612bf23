"""Conditions on what a corpus says of its passages beside their text: the `where` of a search.

`{"year": 2018}` is equality, `{"tag": ["a", "b"]}` any of several values, `{"date": {"gte": "2018-01", "lt": "2019"}}` a range. All have to
hold. A number is compared with numbers only, a text with texts (by code points), a boolean with booleans. A field that holds a list matches
by any of its values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import orjson

from rag_serving import ServingError

# of one `where`: fields, values in all its lists, characters of a name or a text
MAX_FIELDS, MAX_VALUES, MAX_CHARACTERS = 16, 1_000, 4_096
_TOLD = 50  # names in a message
_RANGE: dict[str, Callable[[Any, Any], bool]] = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
_FORMS = 'a value, a list of values, or a range like {"gte": 2018, "lt": 2020}; a value is a text, a number, or true or false'
DESCRIPTION = (
    "only passages whose metadata match: a field and its value, a list of values (any of them), or a range of gt, gte, lt, lte; "
    "several fields: all of them"
)

Key = tuple[str, Any]  # of a value: kind and value, since True equals 1 in Python
Condition = Callable[[Key], bool]


class Where:
    """What a passage's metadata must be."""

    def __init__(self, conditions: Mapping[str, Any]) -> None:
        """Read the conditions of a request; none: every passage matches.

        Raises:
            ServingError: one cannot be, or they are too many.
        """
        if len(conditions) > MAX_FIELDS:
            raise ServingError(f"where names {len(conditions)} fields; {MAX_FIELDS} are the most")
        values = sum(len(wanted) for wanted in conditions.values() if isinstance(wanted, list))
        if values > MAX_VALUES:
            raise ServingError(f"the lists of where hold {values} values; {MAX_VALUES} in all are the most")
        self._conditions = {field: _condition(field, wanted) for field, wanted in conditions.items()}

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def check(self, fields: Collection[str] | None) -> None:
        """Compare with the fields that the passages have; None: not known.

        Raises:
            ServingError: there is no such field; names those that there are.
        """
        unknown = [field for field in self._conditions if fields is not None and field not in fields]
        if not unknown or fields is None:
            return
        names = [repr(name[:100]) for name in sorted(fields)]
        more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
        there = f"there are: {', '.join(names[:_TOLD])}{more}" if names else "its corpus says nothing of them beside their text"
        raise ServingError(f"where: the index' passages have no field {unknown[0][:100]!r}; {there}")

    def matches(self, metadata: bytes) -> bool:
        """Whether all conditions hold of a passage's metadata (JSON: an object; null, where it was too large to be kept, matches none)."""
        said = orjson.loads(metadata) or {}
        return all(field in said and _holds(condition, said[field]) for field, condition in self._conditions.items())


def _holds(condition: Condition, value: Any) -> bool:
    return any(map(condition, map(_key, value if isinstance(value, list) else [value])))


def _condition(field: str, wanted: Any) -> Condition:
    if not _sound(field):
        raise ServingError(
            f"a field of where has a name of more than {MAX_CHARACTERS} characters, or one that is no Unicode text"
        )
    where = f"where, {field[:100]!r}"
    if isinstance(wanted, dict):
        if not wanted or not set(wanted) <= set(_RANGE):
            named = ", ".join(repr(name[:100]) for name in list(wanted)[:5]) or "nothing"
            raise ServingError(f"{where}: a range is made of {', '.join(_RANGE)}, got {named}")
        bounds = {name: _scalar(where, bound) for name, bound in wanted.items()}
        kinds = {kind for kind, _ in bounds.values()}
        if len(kinds) > 1 or "boolean" in kinds:
            raise ServingError(
                f"{where}: the bounds of a range are all numbers or all texts, got {' and '.join(sorted(kinds))}"
            )
        return partial(_within, kinds.pop(), [(_RANGE[name], bound) for name, (_, bound) in bounds.items()])
    if wanted == []:
        raise ServingError(f"{where}: an empty list matches nothing; give values, or leave the field out")
    return frozenset(_scalar(where, value) for value in (wanted if isinstance(wanted, list) else [wanted])).__contains__


def _within(kind: str, bounds: list[tuple[Callable[[Any, Any], bool], Any]], key: Key) -> bool:
    return key[0] == kind and all(fits(key[1], bound) for fits, bound in bounds)


def _scalar(where: str, value: Any) -> Key:
    key = _key(value)
    if key[0] not in ("boolean", "number", "text"):
        raise ServingError(f"{where}: expected {_FORMS}; got {key[0]}")
    return key


def _key(value: Any) -> Key:
    """Return kind and value; what can be no value of a condition has no value here."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return "number", value
    if isinstance(value, str) and _sound(value):
        return "text", value
    if isinstance(value, float):
        return "NaN, or a number without an end", None
    if isinstance(value, str):
        return f"a text of more than {MAX_CHARACTERS} characters, or no Unicode text", None
    return "null" if value is None else "a list in a list" if isinstance(value, list) else "an object", None


def _sound(text: str) -> bool:
    """Whether it is short enough, and holds no half of a character."""
    try:
        return len(text) <= MAX_CHARACTERS and text.encode() is not None
    except UnicodeEncodeError:
        return False
