"""The memory of a training on a CPU, measured and as the doctor estimates it: `python -m benchmarks.memory --out DIR [--model MODEL]`.

Trains recipes/wikipedia/cpu.yaml for two steps on a fictional world, with random models of three sizes: architecture, vocabulary and
tokenizer are those of the model. The peak is that of the proportional set sizes (a page shared by n processes counts 1/n in each) of all
processes of the run together, read every second. What is done is not run again. Writes DIR/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil

from experiment.model import DEFAULT, fetch_model
from research_rl.cpu import CPU_ENVIRONMENT, hardware
from research_rl.methods.research import ReSearch
from research_rl.training.processes import leaving_none, start, start_service, tail, wait_until_healthy
from research_rl.types import Reward, Trajectory

ROOT = Path(__file__).parents[1]
RECIPE = "recipes/wikipedia/cpu.yaml"
SIZES = {"small": (10, 384, 6), "medium": (30, 576, 9), "large": (32, 960, 15)}  # layers, units, heads
OVERRIDES = (
    "trainer.total_training_steps=2",
    "trainer.save_freq=-1",
    "data.train_batch_size=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=1",
    "research_rl.max_turn_tokens=720",
    "research_rl.method=benchmarks.memory.PaysByChance",
)


class PaysByChance(ReSearch):
    """ReSearch with a reward that the texts of a random model differ in, because rollouts without an advantage are not trained on."""

    name: ClassVar[str] = "research"

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str]) -> Reward:
        return Reward(sum(trajectory.response_ids) % 100 / 100, {})


def random_model(source: Path, size: str, folder: Path) -> float:
    """Write a random model of this size with the architecture and tokenizer of `source`; return its parameters in millions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = SIZES[size]
    config.num_key_value_heads, config.intermediate_size = config.num_attention_heads // 3, config.hidden_size * 8 // 3
    config.head_dim, config.dtype = config.hidden_size // config.num_attention_heads, "float32"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return model.num_parameters() / 1e6


def resident(process: psutil.Process) -> dict[str, float]:
    """Return the proportional set sizes of a process and its descendants in GiB, by part."""
    found = {"trainer": 0.0, "engine": 0.0, "other processes": 0.0}
    for one in (process, *process.children(recursive=True)):
        try:
            text, title = Path(f"/proc/{one.pid}/smaps_rollup").read_text(encoding="ascii"), " ".join(one.cmdline())
        except (OSError, psutil.Error):  # it has just ended
            continue
        part = "trainer" if "WorkerDict" in title else "engine" if "EngineCore" in title else "other processes"
        found[part] += int(text.partition("\nPss:")[2].split()[0] or 0) / 2**20
    return found


def estimated(environment: dict[str, str], run_dir: Path) -> float:
    """Return the doctor's estimate in GiB."""
    command = [
        sys.executable,
        "-m",
        "research_rl.cli",
        "doctor",
        "--recipe",
        RECIPE,
        "--run-dir",
        str(run_dir),
        "--json",
        *OVERRIDES,
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment).stdout
    (memory,) = [finding for finding in json.loads(told)["findings"] if finding["name"] == "memory"]
    return float(re.search(r"about ([\d.]+) GiB", memory["what"])[1])  # type: ignore[index]  # the doctor's words


def measure(size: str, model: Path, out: Path, url: str) -> dict[str, Any]:
    """Train a model of this size, and return its figures."""
    run_dir = out / size
    parameters = random_model(model, size, run_dir / "model")
    places = {"MODEL": run_dir / "model", "DATA_DIR": out / "data", "RUN_DIR": run_dir, "PYTHONPATH": ROOT}
    settings = {**{key: str(value) for key, value in places.items()}, "RETRIEVAL_URL": url}
    environment = {**os.environ, **CPU_ENVIRONMENT, **settings}
    estimate = estimated(environment, run_dir)
    command = [sys.executable, "-m", "research_rl.train", RECIPE, "--run-dir", str(run_dir), *OVERRIDES]
    training = start(command, run_dir / "train.log", settings)
    process, peak = psutil.Process(training.pid), {"": 0.0}
    while training.poll() is None:
        peak = max(peak, resident(process), key=lambda parts: sum(parts.values()))
        time.sleep(1)
    if training.returncode:
        raise SystemExit(f"the training of {size} failed: {tail(run_dir / 'train.log')}")
    return {"million_parameters": parameters, "measured_gib": sum(peak.values()), "parts": peak, "estimated_gib": estimate}


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT, help="directory or hub id (default: %(default)s)")
    parser.add_argument("--port", type=int, default=18_700)
    parser.add_argument("--only", nargs="*", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    model = Path(fetch_model(options.model, out / "model")["path"])
    if not (out / "index").is_dir():
        for command in (
            ("data_preprocess", "world", "--out", out / "data"),
            ("rag_serving.cli", "index", "--corpus", out / "data" / "corpus.jsonl", "--out", out / "index"),
        ):
            subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True, cwd=ROOT)
    results = out / "memory.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {"hardware": hardware()}
    with leaving_none():
        log, url = out / "service.log", f"http://127.0.0.1:{options.port}"
        wait_until_healthy(start_service(out / "index", options.port, log), url, log)
        for size in options.only:
            if size not in found:
                found[size] = measure(size, model, out, url)
                results.write_text(json.dumps(found, indent=1))
            row = found[size]
            error = row["estimated_gib"] / row["measured_gib"] - 1
            print(
                f"{size:8}{row['million_parameters']:8.1f} M  measured {row['measured_gib']:5.1f} GiB, estimated "
                f"{row['estimated_gib']:5.1f} GiB ({error:+.0%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
