"""The training itself: verl's trainer as a child process, followed until it ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from quickstart.progress import follow
from research_rl.errors import ConfigError, DataError, GenerationError, RetrievalError
from research_rl.processes import start, tail
from research_rl.trajectory_log import read

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart"
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DEDUP_LOGS": "0",
    "HYDRA_FULL_ERROR": "1",
}


def train(
    run_dir: Path, options: argparse.Namespace, urls: list[str], console: Console, add_seconds: Callable[[str, float], None]
) -> None:
    """Run verl's trainer to the end; its own validation measures before and after. `add_seconds` takes the time of each part.

    Raises:
        ConfigError, DataError, GenerationError, RetrievalError: what ended the training; ConfigError also for a cause of another kind.
    """
    log = run_dir / "train.log"
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(RECIPE), "--config-name", "train",
        "trainer.logger=[console,file]", *options.overrides,
    ]  # fmt: skip
    if options.steps is not None:
        command.append(f"trainer.total_training_steps={options.steps}")
    environment = CPU_ENVIRONMENT | {
        "RUN_DIR": str(run_dir), "SEED": str(options.seed), "RETRIEVAL_URL": urls[0], "CONTROL_RETRIEVAL_URL": urls[1],
        "VERL_FILE_LOGGER_PATH": str(run_dir / f"metrics-{int(time.time())}.jsonl"),
    }  # fmt: skip
    started, logged = time.time(), log.stat().st_size if log.exists() else 0
    process = start(command, log, environment)
    console.print(f"log: {log}")
    code = follow(process, run_dir, console)
    ended = time.time()
    for name, seconds in timeline([r for r in read(run_dir / "trajectories") if r["time"] >= started], started, ended).items():
        add_seconds(name, seconds)
    if code:
        raise _failure(log, logged, code)


def timeline(records: list[dict[str, Any]], started: float, ended: float) -> dict[str, float]:
    """Return the seconds of each part of one training process; measuring is what lies between held-out trajectories of one step."""
    if not any(record["split"] != "train" for record in records):
        return {"engine start": ended - started}
    held_out = sorted((record["step"], record["time"]) for record in records if record["split"] != "train")
    first, last = held_out[0][0], held_out[-1][0]
    begin = min(record["time"] for record in records)
    before = max(moment for step, moment in held_out if step == first)
    after = min((moment for step, moment in held_out if step == last and last > first), default=ended)
    return {
        "engine start": begin - started, "measuring before": before - begin,
        "training": after - before, "measuring after, saving": ended - after,
    }  # fmt: skip


def _failure(log: Path, logged: int, code: int) -> Exception:
    """Return the error that ended a training, in one line if it is one of ours; `logged` is where its part of the log begins."""
    with log.open(errors="replace") as file:
        file.seek(logged)
        lines = file.read().splitlines()
    for line in reversed(lines):
        for kind in (RetrievalError, ConfigError, DataError, GenerationError):
            _, found, message = line.partition(f"{kind.__name__}: ")
            if found:
                return kind(message)
    return ConfigError(f"training ended with exit code {code}; the end of {log}:\n{tail(log)}")
