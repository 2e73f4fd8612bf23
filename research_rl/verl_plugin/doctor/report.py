"""Findings as text and as JSON."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence

from research_rl.verl_plugin.doctor.finding import Finding

_COLOURS = {"error": "31", "warning": "33", "ok": "32"}
_WIDTH = 110


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """Return one JSON object."""
    return json.dumps({"findings": [finding.to_json() for finding in findings], "seconds": round(seconds, 2)}, indent=1)


def as_text(findings: Sequence[Finding], seconds: float, colour: bool = False) -> str:
    """Return a line for each finding that is all right, and for others the lines what, got and do."""
    lines = []
    for finding in findings:
        level = f"{finding.level:<8}"
        painted = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m" if colour else level
        if finding.level == "ok":
            lines.append(f"{painted}{finding.name}: {finding.what}")
            continue
        lines.append(f"{painted}{finding.name}")
        for label, text in (("what", finding.what), ("got", finding.got), ("do", finding.do)):
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {label:<6}", subsequent_indent=" " * 8, break_long_words=False
            )
    counted = Counter(finding.level for finding in findings)
    lines.append(f"{_count(counted['error'], 'error')}, {_count(counted['warning'], 'warning')}, in {seconds:.1f} s")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def coloured() -> bool:
    """Return whether standard output is a terminal and NO_COLOR is not set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
