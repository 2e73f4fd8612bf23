"""How files of an index are read before anything is known of them: whoever made them may have meant harm."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np

MOST_JSON = 16 << 20  # bytes of a file that is parsed whole


def mapped(path: Path) -> np.memmap:
    """Map the array in a .npy file, to be read; never one of Python objects, which would be unpickled.

    Only of the format's version 1.0, which everything that makes indexes writes: its header has 64 KiB at the most, that of others 4 GiB.

    Raises:
        OSError, ValueError: there is none, or of another kind.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{path.name} has a header of version {version[0]}.{version[1]} instead of 1.0")
    return np.lib.format.open_memmap(path, mode="r")


def small_json(path: Path) -> Any:
    """Return what a JSON file says.

    Raises:
        OSError, ValueError: it is none, or has more than `MOST_JSON` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe may never end
        raise ValueError(f"{path.name} is no regular file")
    if status.st_size > MOST_JSON:
        raise ValueError(f"{path.name} has {status.st_size} bytes, and {MOST_JSON} are the most")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} nests lists and objects too deeply") from None
