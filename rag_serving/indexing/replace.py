"""A new index in the place of an old one: at every moment one of them is there, and a crash leaves what can be taken up again."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def aside(out: Path) -> Path:
    """Return where the old index stands while a file system that cannot exchange two directories renames them one after the other."""
    return out.with_name(f".{out.name}.old")


def put(building: Path, out: Path) -> None:
    """Make `building` the directory `out`, and delete what was there. Killed in between, `recover` puts it right."""
    if not out.exists():
        building.rename(out)
    elif _exchanged(building, out):
        shutil.rmtree(building)
    else:
        out.rename(aside(out))
        building.rename(out)
        shutil.rmtree(aside(out))


def recover(out: Path) -> None:
    """Put an old index back whose successor did not get into its place; delete one whose successor did."""
    if out.exists():
        shutil.rmtree(aside(out), ignore_errors=True)
    elif aside(out).exists():
        aside(out).rename(out)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two directories in one step, where kernel and file system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
