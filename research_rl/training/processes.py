"""Child processes, which end with this one unless it is killed by SIGKILL."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import httpx

from research_rl.errors import RetrievalError, missing_extra

try:
    import psutil
except ModuleNotFoundError as error:
    raise missing_extra("psutil", "train") from error


def adopt_orphans() -> None:
    """On Linux: become the parent of every descendant whose own parent dies, so that Ray's daemons can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def stop_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, so that there is one way of cleaning up.

    SIGINT is included because a process that a shell starts in the background ignores it otherwise.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a command with its output appended to `log`, in a session of its own: the terminal's Ctrl-C does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip  # many arguments


def start_service(index: Path, port: int, log: Path, *flags: str) -> subprocess.Popen:
    """Start a retrieval service in a process of its own (`flags`: further settings); `wait_until_healthy` before it is used."""
    command = [sys.executable, "-m", "rag_serving.cli", "serve", "--index", str(index), "--port", str(port), *flags]
    return start(command, log, {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})


def stop_all(grace_s: float = 10.0) -> None:
    """End every descendant by SIGTERM, and by SIGKILL after `grace_s` seconds. A further Ctrl-C does not interrupt this."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + grace_s
    while children := psutil.Process().children(recursive=True):
        late = time.monotonic() > deadline
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill() if late else child.terminate()
        psutil.wait_procs(children, timeout=1.0)
        if time.monotonic() > deadline + 20:
            break


@contextlib.contextmanager
def leaving_none() -> Iterator[None]:
    """End every descendant when the block is left, for whatever reason; signals become KeyboardInterrupt. Use it in a main program only."""
    stop_on_signals()
    adopt_orphans()
    try:
        yield
    finally:
        stop_all()


def wait_until_healthy(process: subprocess.Popen, url: str, log: Path, timeout_s: float = 180.0) -> None:
    """Wait for a retrieval service.

    Raises:
        RetrievalError: it ended, or is not healthy in time; the message contains the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.RequestError):
            if httpx.get(f"{url}/health", timeout=2.0).status_code == 200:
                return
        time.sleep(0.3)
    raise RetrievalError(f"the retrieval service at {url} did not start; the end of {log}:\n{tail(log)}")


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a file."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def last_word(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command wrote to standard error; if it was killed before it could write one, its exit code."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with exit code {done.returncode}"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
