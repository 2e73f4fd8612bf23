"""Files of an index that are cut off, or copied over, while they are mapped.

Reading beyond the end of a mapped file is a bus error, which ends a process without a word from Python. Our own commands build beside an
index and rename, so that what is served keeps its files. `cp` and `rsync --inplace` do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rag_serving import IndexingError

_ONCE = threading.Lock()
_KEPT: list[Any] = []  # what the handler of the signal reads; nothing else refers to it


class ChangedError(IndexingError):
    """A file of the index that is served is not what it was."""


class Files:
    """The files of an index, held open, whatever is renamed to their place."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        """Open them; the sizes are the manifest's.

        Raises:
            OSError: one is missing.
        """
        self._open: dict[str, tuple[int, int]] = {}
        weakref.finalize(self, _close, self._open)
        for name, entry in manifest["files"].items():
            self._open[name] = os.open(directory / name, os.O_RDONLY), entry["bytes"]

    def changed(self) -> ChangedError | None:
        """Return what to say of a file that has another size now, or is gone; None: there is none. On a disk it costs microseconds; where a
        network mount is dead it may never return, so no event loop may wait for it.

        No directory is named: anybody may read this in `/readyz`.
        """
        for name, (descriptor, size) in self._open.items():
            try:
                found = os.fstat(descriptor).st_size
            except OSError as error:  # over a network: another machine has replaced it, or the file system is gone
                return ChangedError(
                    f"{name}, as it is served, cannot be read any more ({error.strerror}); if an index that is whole is "
                    "there, send SIGHUP"
                )
            if found != size:
                return ChangedError(
                    f"{name} has {found} bytes instead of {size}; it was changed in place while it was served. Put an "
                    "index that is whole there (rag-serving index --force, or a copy beside it that is renamed), and send SIGHUP"
                )
        return None


def _close(opened: dict[str, tuple[int, int]]) -> None:
    for descriptor, _ in opened.values():
        os.close(descriptor)


def tell_bus_errors(directories: Iterable[Path]) -> None:
    """From now on, write a line that names the indexes to standard error when a bus error ends this process."""
    line = (
        "rag-serving: SIGBUS: a mapped file cannot be read any more, so this process ends. It was cut off or copied over while it was "
        f"served, or its disk fails. Indexes: {', '.join(map(str, directories))}; what is wrong: rag-serving verify DIR\n"
    )
    # without numba, or on a system without the signal, it ends without a word
    with _ONCE, contextlib.suppress(ImportError, AttributeError):
        if not _KEPT:
            _tell(line.encode(), signal.SIGBUS)


def _tell(line: bytes, number: int) -> None:
    # compiled, for a handler in Python would never run: the interpreter waits for the very read that fails again and again
    from numba import cfunc, types

    libc = ctypes.CDLL(None)
    write, handle, again = libc.write, libc.signal, getattr(libc, "raise")
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t), ctypes.c_ssize_t
    handle.argtypes, handle.restype = (ctypes.c_int, ctypes.c_size_t), ctypes.c_size_t
    again.argtypes, again.restype = (ctypes.c_int,), ctypes.c_int
    buffer = ctypes.create_string_buffer(line)
    address, size, before = ctypes.addressof(buffer), len(line), handle(number, 0)

    @cfunc(types.void(types.int32))
    def told(number):
        write(2, address, size)
        handle(number, before)
        again(number)  # it comes once this returns, and ends the process as it would have

    handle(number, told.address)
    _KEPT.extend((buffer, told, libc))
