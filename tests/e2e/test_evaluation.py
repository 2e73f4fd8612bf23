"""The evaluator for real: the retrieval service, a vLLM server that the command starts itself, a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_preprocess.world.write import write_world
from research_rl.training.processes import start_service, wait_until_healthy
from tests import small_vllm
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vLLM for CPUs is for Linux")]
ENVIRONMENT = os.environ | small_vllm.ENVIRONMENT


def test_a_model_served_by_the_command_is_measured_and_a_kill_costs_only_what_was_under_way(tmp_path):
    write_world(tmp_path / "data", 5, 0.2, {"train": 5, "dev": 5, "test": 40})
    index = [sys.executable, "-m", "rag_serving.cli", "index", "--corpus", str(tmp_path / "data" / "corpus.jsonl"), "--out"]
    subprocess.run([*index, str(tmp_path / "index")], check=True, capture_output=True, cwd=ROOT)
    port = free_port()
    service = start_service(tmp_path / "index", port, tmp_path / "service.log")
    out = tmp_path / "run.jsonl"
    command = [
        *(
            sys.executable,
            "-m",
            "evaluation",
            "run",
            "--serve",
            "--serve-options",
            "--dtype float32 --max-model-len 512 --max-num-seqs 8",
        ),
        *("--model", "start", "--tokenizer", str(WEIGHTS), "--method", "research", "--method-options"),
        *(
            json.dumps({"prompt_file": str(ROOT / "recipes" / "quickstart" / "prompt.txt")}),
            "--top-k",
            "3",
            "--max-searches",
            "4",
        ),
        *("--questions", str(tmp_path / "data" / "test.jsonl"), "--concurrency", "2"),
        *("--retrieval-url", f"http://127.0.0.1:{port}", "--out", str(out)),
    ]
    try:
        wait_until_healthy(service, f"http://127.0.0.1:{port}", tmp_path / "service.log")
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (out.exists() and out.read_text().count("\n") >= 5):
            assert process.poll() is None, (tmp_path / "run.vllm.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for child in children:  # a killed command cannot end its engine: nobody could
            child.kill()
        psutil.wait_procs(children, 10)
        before = out.read_text()
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        service.terminate()
        service.wait(20)
    figures = json.loads(done.stdout)
    reduced = figures["reduced_budgets"]  # 8,192 tokens were asked for, and the engine has 512
    assert (reduced["rollouts"], reduced["asked_response_tokens"]) == (40, 8192)
    assert 300 < reduced["least_response_tokens"] < 512
    assert done.stderr.count("the model's server allows 512 tokens") == 1
    assert figures["n"] == 40
    assert figures["searches"] >= 0.5  # it does search
    assert 0.1 < figures["em"] < 0.9
    whole = before[: before.rfind("\n") + 1]
    assert out.read_text().startswith(whole)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 40
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if "vllm" in command and str(WEIGHTS) in command]  # its engine is ended, too
