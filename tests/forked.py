"""`python -m …`, `python -c …` and scripts for tests, without the seconds of their imports: forked from a process that has made them.

What is imported beforehand is what stands beneath verl and FlashRAG (`LIBRARIES`). They themselves, Hydra (our plugin waits for its
import) and all of ours are imported by the child, which has its own arguments, environment and working directory, as a new
interpreter has. The libraries were imported with the tests' environment. For what only a new interpreter shows (settings of the heap,
what is imported first) use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch", "transformers", "pandas", "pyarrow.parquet", "datasets", "tensordict", "omegaconf", "ray", "sklearn.metrics",
    "accelerate", "jsonschema", "httpx",
)  # fmt: skip


class Process:
    """A Python that runs. `arguments` are those of its command line (`-m MODULE …`, `-c CODE …` or `FILE …`); `environment` is added to the
    tests'.
    """

    def __init__(self, *arguments: str, cwd: Path | str = ROOT, **environment: str) -> None:
        """Start it."""
        self.arguments = arguments
        self._told = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (`wait` closes them)
        self._status, status = os.pipe()
        request = {"arguments": arguments, "cwd": str(cwd), "environment": {**os.environ, **environment}}
        with tempfile.TemporaryFile("w+") as file:
            json.dump(request, file)
            file.seek(0)
            socket.send_fds(_server(), [b"!"], [file.fileno(), *(told.fileno() for told in self._told), status])
        os.close(status)
        self.pid = int(self._read())

    def _read(self) -> bytes:
        """Return the next line of what is told of the process."""
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := os.read(self._status, 1)):
                raise RuntimeError(f"the process that {' '.join(self.arguments)[:200]} is forked from is gone")
            line += byte
        return line

    def running(self) -> bool:
        """Return whether it has not ended."""
        return not select.select([self._status], [], [], 0)[0]

    def kill(self) -> None:
        """Kill it; `wait` for it afterwards."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Return its exit code (negative: the signal that ended it) and what it wrote.

        Raises:
            AssertionError: it was still running after `timeout_s`, and was killed; what it wrote stands in the message.

        """
        late = not select.select([self._status], [], [], timeout_s)[0]
        if late:
            self.kill()
        code = int(self._read())
        os.close(self._status)
        written = []
        for told in self._told:
            told.seek(0)
            written.append(told.read())
            told.close()
        assert not late, f"{' '.join(self.arguments)[:200]} still ran after {timeout_s} s:\n{written[0]}\n{written[1]}"
        return subprocess.CompletedProcess(self.arguments, code, *written)


def run(*arguments: str, cwd: Path | str = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end; see `Process`."""
    return Process(*arguments, cwd=cwd, **environment).wait()


def verl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run verl's own command to its end."""
    return run("-m", "verl.trainer.main_ppo", *arguments, **environment)


@functools.cache
def _server() -> socket.socket:
    """Return the connection to the process that forks; it ends with the tests'."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, env=environment)
    theirs.close()
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> dict:
    """Fork for every request; return it in the child that is to carry it out."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        _, received, _, _ = socket.recv_fds(requests, 1, 4)
        if not received:
            sys.exit()
        if os.fork():
            for descriptor in received:
                os.close(descriptor)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, stdout, stderr, status = received
        if child := os.fork():
            os.write(status, b"%d\n" % child)
            os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        requests.close()
        os.close(status)
        with os.fdopen(request) as file:
            return json.load(file)


def _become(request: dict) -> None:
    """Run what is asked for as the interpreter would."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    kind, *rest = sys.argv = request["arguments"]
    if kind not in ("-m", "-c"):
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
        return
    what = rest.pop(0)
    sys.path.insert(0, request["cwd"])
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def _end(raised: BaseException | None) -> None:
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # without the training's environment there is less to import
            __import__(library)
    gc.collect()
    gc.freeze()  # or a child's first collection writes to, and so copies, all that they share
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        _become(asked)
    except BaseException as raised:
        _end(raised)
    _end(None)
