"""Checks the numbers of a configuration: every section in the same way."""

from __future__ import annotations

import math
from typing import Any

from research_rl.errors import ConfigError


def check_number(
    key: str,
    value: Any,
    what: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float = math.inf,
    whole: bool = False,
    or_null: bool = False,
) -> None:
    """Check that a value is a finite number of at least `low`, above `above`, and at most `high`. True and false are no numbers.

    Raises:
        ConfigError: it is not; `what` says what it must be.
    """
    if value is None and or_null:
        return
    kinds = int if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not math.isfinite(value)
        or (low is not None and value < low)
        or (above is not None and value <= above)
        or value > high
    ):
        raise ConfigError(f"{key} must be {what}, got {value!r}")
