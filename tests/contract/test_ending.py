"""A thread that hangs does not keep `rag-serving` from ending: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import free_port

ROOT = Path(__file__).parents[2]

# patched when it is imported, so that the workers, which import it anew, hang as well
SCRIPT = """
import sys, time
import rag_serving.retrievers
from rag_serving import server
from rag_serving.retrievers import DummyRetriever, Opened
from rag_serving.settings import Settings

where, workers, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
loads = []


def hang(here):
    if here == where:
        print("it hangs", flush=True)
        time.sleep(1000)


class Hanging(DummyRetriever):
    def warm_up(self):
        hang("warm_up" if len(loads) == 1 else "warm_up of a reload")

    def close(self):
        hang("close")


def load(settings, report):
    loads.append(1)
    report("reading the mount")
    hang("load" if len(loads) == 1 else "reload")
    return Opened(Hanging([("1", "passage")]), "i", "f")


rag_serving.retrievers.open_retriever = load
if __name__ == "__main__":
    sys.exit(server.serve(Settings(workers=workers, port=port, drain_s=1)))
"""


def wait_for(log: Path, text: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + 300
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("where", "workers", "number", "told"),
    [
        ("warm_up", 1, signal.SIGTERM, "index default, warming up"),
        ("load", 1, signal.SIGINT, "index default, loading (reading the mount)"),
        ("load", 2, signal.SIGTERM, "index default, loading (reading the mount)"),
        ("reload", 1, signal.SIGINT, "index default, being loaded again"),
        ("warm_up of a reload", 1, signal.SIGTERM, "index default, warming up what was loaded again"),
        ("close", 1, signal.SIGTERM, "index default, answering its last queries or closing"),
        ("nowhere", 1, signal.SIGTERM, None),
        ("nowhere", 2, signal.SIGTERM, None),
    ],
)
def test_whatever_hangs_the_process_ends_and_tells_what(tmp_path, where, workers, number, told):
    script, log = tmp_path / "served.py", tmp_path / "log"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), where, str(workers), str(free_port())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        if where not in ("load", "warm_up"):
            wait_for(log, "ready: ", process)
        if "reload" in where:
            process.send_signal(signal.SIGHUP)
        if where not in ("close", "nowhere"):
            wait_for(log, "it hangs", process)
        process.send_signal(number)
        code = process.wait(30)
        if told is None:
            assert code in (0, -number)
            assert "waiting any longer" not in log.read_text()
        else:
            assert code == 1
            assert f"ends without waiting any longer for: {told}" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("then", "code", "printed"),
    [("time.sleep(1); print('goes on')", 0, "goes on\n"), ("threading.Thread(target=time.sleep, args=(300,)).start()", 1, "")],
    ids=["a caller that has more to do", "a thread that would keep the process"],
)
def test_after_the_server_only_threads_that_would_keep_the_process_are_not_waited_for(then, code, printed):
    script = f"""
import threading, time
from rag_serving.ending import Ending

ending = Ending(drain_s=0.1, grace_s=0.1)
ending.end_within(0.3)
ending.over()
ending.end_after_main(0.2)
{then}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (code, printed), done.stderr
