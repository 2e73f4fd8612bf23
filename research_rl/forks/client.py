"""Stands for a program that another process forks: passes its arguments, environment, directory, open files and signals on, and ends as
it ends. Without that process it becomes Python itself.

It is run by its path, isolated and without site-packages, so it may import the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from types import FrameType
from typing import NoReturn

HARMLESS = ("-u", "-B", "-s", "-E", "-P")  # options of the interpreter that a forked program may do without
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NUMBER = struct.Struct("!q")


def main() -> None:
    """Have the program run, and end as it does."""
    arguments = sys.argv[1:]
    while arguments and arguments[0] in HARMLESS:
        del arguments[0]
    known = arguments and (arguments[0] in ("-c", "-m") or not arguments[0].startswith("-"))
    connection = _connect() if known else None
    if connection is None:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    descriptors = _inherited(connection.fileno())
    request = {
        "arguments": arguments,
        "cwd": os.getcwd(),  # noqa: PTH109 (without the milliseconds of pathlib)
        "environment": dict(os.environ),
        "descriptors": descriptors,
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [NUMBER.pack(len(body))], descriptors)
    connection.sendall(body)
    pid = _number(connection)

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    end_as(_number(connection))


def end_as(code: int) -> NoReturn:
    """End this process with an exit code, or if it is negative by that signal, as `subprocess` tells it."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _connect() -> socket.socket | None:
    """Return a connection to the process that forks; None if there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.environ["RESEARCH_RL_FORKS"])
    except (KeyError, OSError):
        connection.close()
        return None
    return connection


def _inherited(without: int) -> list[int]:
    """Return the numbers of the open files that a program would be given."""
    numbers = map(int, os.listdir("/proc/self/fd"))  # noqa: PTH208 (without the milliseconds of pathlib)
    return [number for number in numbers if number != without and _is_open(number)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # that of the listing itself
        return False
    return True


def _number(connection: socket.socket) -> int:
    """Return the next number that is told of the program; the process that forks is gone if there is none, and the program with it."""
    told = b""
    while len(told) < NUMBER.size:
        if not (more := connection.recv(NUMBER.size - len(told))):
            os._exit(1)
        told += more
    return NUMBER.unpack(told)[0]


if __name__ == "__main__":
    main()
