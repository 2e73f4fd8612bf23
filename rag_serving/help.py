"""How the help of a command ends."""

from __future__ import annotations

import argparse
from typing import Any


def example(typed: str) -> dict[str, Any]:
    """Return what a parser is made with, so that its help ends with a command as it is typed."""
    return {"epilog": f"example:\n  {typed}", "formatter_class": argparse.RawDescriptionHelpFormatter}
