"""``python -m research_rl.forks.server MODULES -- ARGUMENTS``: Python with the arguments, forked after the imports (`research_rl.forks`).

A forked program has its own arguments, environment, directory and open files, as a new interpreter has. What it shares is what the modules
(names, comma-separated; those that cannot be imported are left out) did when they were imported: they saw this process's environment. No
module may start a thread: a fork has none of them.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from research_rl.forks import ADDRESS, PYTHON, client

MOST_DESCRIPTORS = 250  # the system's limit of one message is 253
LONGEST_FOLDER = 80  # characters, of the folder for temporary files
GRACE_S = 2.0  # for programs that are left when the first has ended
PR_SET_PDEATHSIG = 1


class Server:
    """Forks the first program, then one for every request, until the first has ended."""

    def __init__(self) -> None:
        """Listen, and say in the environment where, and what stands for `python`."""
        # a socket's path has 108 characters at most
        self._directory = tempfile.mkdtemp(
            prefix="research-rl-", dir="/tmp" if len(tempfile.gettempdir()) > LONGEST_FOLDER else None
        )
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._directory}/socket")
        self._listener.listen(64)
        self._askers: dict[int, socket.socket | None] = {}  # who asked for a program and waits for its end, by its id
        python = Path(self._directory) / "python"
        command = shlex.join([sys.executable, "-I", "-S", client.__file__])
        python.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        python.chmod(0o700)
        os.environ.pop(PYTHON, None)
        if os.access(python, os.X_OK):
            os.environ |= {ADDRESS: f"{self._directory}/socket", PYTHON: str(python)}
        else:
            told = "nothing may be executed there (noexec), so each process makes its own imports: a slower start"
            print(f"research_rl: {self._directory}: {told}", file=sys.stderr)

    def serve(self, arguments: list[str]) -> dict[str, Any]:
        """Fork; return what a program is to be in the process that is to become it. The process that forks never returns."""
        woken, wakes = self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # signals write to it
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's reaches the program, too
        if not (first := os.fork()):
            self._leave()
            return {"arguments": arguments}
        self._askers[first] = None
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(first, number))
        while True:
            events = select.poll()
            events.register(woken, select.POLLIN)
            events.register(self._listener, select.POLLIN)
            for asker in filter(None, self._askers.values()):
                events.register(asker, 0)  # when it is closed; what is sent is for the program
            ready = {descriptor for descriptor, _ in events.poll()}
            if woken in ready:
                os.read(woken, 4096)
                for pid, code in self._ended():
                    if pid == first:
                        self._close()
                        client.end_as(code)
            for pid, asker in self._askers.items():
                if asker and asker.fileno() in ready:  # it is gone: killed, perhaps, for the program's sake
                    os.kill(pid, signal.SIGKILL)
                    asker.close()
                    self._askers[pid] = None
            if self._listener.fileno() in ready:
                connection, _ = self._listener.accept()
                if not (pid := os.fork()):
                    self._leave()
                    os.setpgid(0, 0)  # a terminal's Ctrl-C is for the first program
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with this process it ends, too
                    return _receive(connection)
                self._askers[pid] = connection
                _tell(connection, pid)

    def _ended(self) -> Iterator[tuple[int, int]]:
        """Yield the programs that have ended, and how; tell those who asked for them."""
        for pid in list(self._askers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if asker := self._askers.pop(pid):
                    _tell(asker, code)
                    asker.close()
                yield pid, code

    def _close(self) -> None:
        """Give programs that were left a moment to clean up, and remove what this process has made."""
        shutil.rmtree(self._directory, ignore_errors=True)
        end = time.monotonic() + GRACE_S
        while self._askers and time.monotonic() < end:
            time.sleep(0.01)
            list(self._ended())

    def _leave(self) -> None:
        """Give up, in a forked process, what is this one's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in self._pipe:
            os.close(descriptor)
        self._listener.close()
        for asker in filter(None, self._askers.values()):
            asker.close()


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        connection.sendall(client.NUMBER.pack(number))


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Return a request, with the files that came with it under the numbers that it names."""
    size, received, _, _ = socket.recv_fds(connection, client.NUMBER.size, MOST_DESCRIPTORS)
    (left,) = client.NUMBER.unpack(size)
    body = bytearray()
    while len(body) < left:
        if not (more := connection.recv(left - len(body))):
            raise EOFError("half a request")
        body += more
    connection.close()
    request = json.loads(body)
    numbers = request["descriptors"]
    above = max([*received, *numbers]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return request


def _become(request: dict[str, Any]) -> None:
    """Run what is asked for as the interpreter would."""
    if "environment" in request:
        given = request["environment"]
        for name in os.environ.keys() - given.keys():
            del os.environ[name]
        for name, value in given.items():
            if os.environ.get(name) != value:  # or setproctitle, which looks behind the first variable, finds no command line
                os.environ[name] = value
        os.chdir(request["cwd"])
    if PYTHON in os.environ:
        multiprocessing.set_executable(os.environ[PYTHON])
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # or all programs draw the same numbers; Python's `random` does so itself
    kind, *rest = sys.argv = request["arguments"]
    sys.path[:] = [
        place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place not in sys.path
    ] + sys.path
    if kind not in ("-m", "-c"):
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
        return
    what = rest.pop(0)
    sys.path.insert(0, str(Path.cwd()))
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def _end(raised: BaseException | None) -> NoReturn:
    """End as the interpreter would, but for the seconds that it takes to free the libraries one object at a time."""
    code = 0
    if isinstance(raised, SystemExit):
        code = raised.code if isinstance(raised.code, int) else int(raised.code is not None)
        if isinstance(raised.code, str):
            print(raised.code, file=sys.stderr)
    elif raised is not None:
        sys.excepthook(type(raised), raised, raised.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] (waits for threads)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed by the program
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Import, fork, and in a forked process run what is asked for."""
    modules, _, *arguments = sys.argv[1:]
    for module in modules.split(","):
        with contextlib.suppress(Exception):  # it fails again, and is told, where it is needed
            importlib.import_module(module)
    sys.stdout.flush()  # what was said while importing is said once
    gc.collect()
    gc.freeze()  # or a program's first collection writes to, and so copies, all that they share
    request = Server().serve(arguments)
    try:
        _become(request)
    except BaseException as raised:
        _end(raised)
    _end(None)


if __name__ == "__main__":
    main()
