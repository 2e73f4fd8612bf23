"""The training itself: verl's trainer as a child process, followed until it ends."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from quickstart.progress import follow
from research_rl.errors import USER_ERRORS, ConfigError
from research_rl.training.jobs import Job
from research_rl.training.processes import start, tail
from research_rl.training.recipe import stages_of
from research_rl.training.train import train as run_recipe
from research_rl.training.trajectory_log import read


def train(
    run_dir: Path, options: argparse.Namespace, urls: list[str], console: Console, add_seconds: Callable[[str, float], None]
) -> None:
    """Run the recipe to the end, stage by stage; verl's validation measures before and after. `add_seconds` gets each part's time.

    Raises:
        ConfigError, DataError, GenerationError, RetrievalError: what ended the training; ConfigError also for any other cause.
    """
    overrides = ["trainer.logger=[console,file]", *options.overrides]
    if options.steps is not None:
        if stages_of(options.recipe, [])[0]:
            raise ConfigError("--steps is for recipes without stages; here: stages.NAME.until.steps=N")
        overrides.append(f"trainer.total_training_steps={options.steps}")
    variables = {"SEED": str(options.seed), "RETRIEVAL_URL": urls[0], "CONTROL_RETRIEVAL_URL": urls[1]}

    def launch(job: Job) -> int:
        return follow_job(
            job, variables, console, lambda name, seconds: add_seconds(f"{job.stage}: {name}" if job.stage else name, seconds)
        )

    # the run's settings.json has been compared already: what differs here is what another version of this project passes
    if run_recipe(options.recipe, run_dir, overrides, launch, accept_changes=True):
        raise halted_training(run_dir)


def follow_job(job: Job, variables: Mapping[str, str], console: Console, add_seconds: Callable[[str, float], None]) -> int:
    """Run a job of the trainer to its end, with its progress on the terminal and its output in train.log; return 0.

    `variables`: environment variables besides the job's own; `add_seconds` gets each part's time (see `timeline`).

    Raises:
        ConfigError, DataError, GenerationError, RetrievalError: what ended it; ConfigError also for any other cause.
    """
    log = job.directory / "train.log"
    started, logged = time.time(), log.stat().st_size if log.exists() else 0
    process = start(job.command, log, {**job.environment, **variables})
    console.print(f"{f'stage {job.stage}, ' if job.stage else ''}log: {log}", highlight=False)
    code = follow(process, job.directory, console)
    ended = time.time()
    records = [record for record in read(job.directory / "trajectories") if record["time"] >= started]
    for name, seconds in timeline(records, started, ended).items():
        add_seconds(name, seconds)
    if code:
        raise failure(log, logged, code)
    return 0


def run_child(
    command: Sequence[str], log: Path, console: Console, told: Callable[[], str], environment: Mapping[str, str] | None = None
) -> None:
    """Run a command to its end, with its output in a log and `told()` on the terminal.

    Raises:
        ConfigError, DataError, GenerationError, RetrievalError: what ended it; ConfigError also for any other cause.
    """
    logged = log.stat().st_size if log.exists() else 0
    process = start(list(command), log, dict(environment or {}))
    started = noted = time.monotonic()
    with console.status(told()) as status:
        while process.poll() is None:
            time.sleep(0.5)
            seconds = int(time.monotonic() - started)
            status.update(f"{seconds // 60}:{seconds % 60:02d}  {told()}")
            if not console.is_terminal and time.monotonic() - noted > 60:
                noted = time.monotonic()
                console.print(f"{seconds} s: {told()}", highlight=False)
    if process.returncode:
        raise failure(log, logged, process.returncode, " ".join(command[2:4]))


def records_of(run_dir: Path, recipe: Path) -> list[dict[str, Any]]:
    """Return the trajectories of all stages, with consecutive step numbers."""
    records, offset = [], 0
    for directory in [run_dir / stage.name for stage in stages_of(recipe, [])[0]] or [run_dir]:
        stage = [{**record, "step": record["step"] + offset} for record in read(directory / "trajectories")]
        offset = max((record["step"] for record in stage), default=offset)
        records += stage
    return records


def halted_training(run_dir: Path) -> ConfigError:
    """Return the error of a training that a health rule has ended."""
    log = max(run_dir.glob("**/health.jsonl"), key=lambda path: path.stat().st_mtime)
    told = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["message"]
    return ConfigError(f"the training was halted: {told} See {log}; the same command goes on from the last checkpoint")


def timeline(records: list[dict[str, Any]], started: float, ended: float) -> dict[str, float]:
    """Return the seconds of each part of one training process. Held-out trajectories before the first training rollout belong to
    the measurement before, later ones to that after. (Of several stages, a later one has none before, an earlier one none after.)"""
    if not records:
        return {"engine start": ended - started}
    begin = min(record["time"] for record in records)
    trained = min((record["time"] for record in records if not record["validate"]), default=begin)
    held_out = [record["time"] for record in records if record["validate"]]
    before = max((moment for moment in held_out if moment < trained), default=begin)
    after = min((moment for moment in held_out if moment >= trained), default=ended)
    return {
        "engine start": begin - started,
        "measuring before": before - begin,
        "training": after - before,
        "measuring after, saving": ended - after,
    }


def failure(log: Path, logged: int, code: int, what: str = "training") -> Exception:
    """Return the error that ended a command: its one-line message if it is one of our errors. `logged`: offset of its output in the log."""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(logged)
        lines = file.read().splitlines()
    for line in reversed(lines):
        for kind in USER_ERRORS:
            _, found, message = line.partition(f"{kind.__name__}: ")
            if found:
                return kind(message)
    return ConfigError(f"{what} ended with exit code {code}; the end of {log}:\n{tail(log)}")
