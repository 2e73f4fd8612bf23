"""SIGHUP means "load the index again", and it is also what a process gets when its terminal is closed."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals as Linux has them")
SCRIPT = """
import signal, sys
# not as the tests were started, perhaps under nohup themselves
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "nohup" else signal.SIG_DFL)
from rag_serving.server import Terminal
terminal, out = Terminal(), open(sys.argv[1], "w", buffering=1)
got = []
signal.signal(signal.SIGHUP, lambda *_: got.append(terminal.closed()))
print("ready", file=out)
while not got:
    signal.pause()
print(got[0], file=out)
"""


def told(out: Path, lines: int) -> list[str]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not out.exists() or out.read_text().count("\n") < lines):
        time.sleep(0.02)
    return out.read_text().split()


@pytest.mark.parametrize(
    ("started", "closes", "ends"), [("plainly", True, "True"), ("plainly", False, "False"), ("nohup", True, "False")]
)
def test_a_closed_terminal_is_told_from_a_signal_that_somebody_sends(tmp_path, started, closes, ends):
    out = tmp_path / "out"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT, str(out), started])
    try:
        assert told(out, 1) == ["ready"]
        if closes:
            os.close(terminal)
        else:
            os.kill(pid, signal.SIGHUP)
        assert told(out, 2) == ["ready", ends]
    finally:
        if not closes:
            os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
