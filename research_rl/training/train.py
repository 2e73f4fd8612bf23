"""``research-rl train RECIPE.yaml [--run-dir DIR] [hydra overrides]``: train a recipe from beginning to end, stage by stage.

Each stage is one job of verl's trainer, and so is a recipe without stages, or one for verl's supervised trainer. A stage starts from the
model of the stage before, which is also its KL reference, with a fresh optimiser. After an interruption, the same command continues in the
stage where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research_rl.command_line import Parser
from research_rl.errors import ConfigError, MissingExtraError
from research_rl.files import changed_settings, write_text
from research_rl.training.jobs import Job, jobs
from research_rl.training.processes import leaving_none
from research_rl.training.recipe import run_directory
from research_rl.training.rollback import HALTED_CODE, halted, stopped

Launch = Callable[[Job], int]  # runs a job to its end; returns the exit code


def run_job(job: Job) -> int:
    """Run a job with its output on this terminal; return the exit code."""
    print(f"research_rl: {f'stage {job.stage}' if job.stage else 'training'} in {job.directory}", flush=True)
    return subprocess.run(job.command, env={**os.environ, **job.environment}, check=False).returncode


def train(recipe: Path, run_dir: Path, overrides: Sequence[str], launch: Launch = run_job, accept_changes: bool = False) -> int:
    """Run all jobs that remain; return 0, or the exit code of the one that failed (HALTED_CODE: a health rule has ended it).

    Raises:
        ConfigError: another process trains in the directory, or it holds a run of another recipe or other overrides
            (with `accept_changes` it goes on with the new ones).
    """
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".train.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training in {run_dir}: wait for it, or choose another --run-dir") from None
        _check_same(
            run_dir, {"recipe": f"{recipe.resolve().parent.name}/{recipe.name}", "overrides": list(overrides)}, accept_changes
        )
        nothing, left = True, jobs(recipe, run_dir, overrides)
        while (job := next(left, None)) is not None:
            nothing = False
            before = halted(job.directory)  # there is one if a halted run is only measured
            if code := launch(job):
                return code
            if halted(job.directory) != before:
                if code := stopped(job.directory):
                    return code
                left = jobs(recipe, run_dir, overrides)  # the same job again, from an earlier checkpoint
        if nothing:
            print(f"research_rl: done already, in {run_dir}")
    return 0


def _check_same(run_dir: Path, settings: dict[str, Any], accept_changes: bool) -> None:
    path = run_dir / "train.json"
    changed = changed_settings(path, settings)
    if changed and accept_changes:
        print(f"research_rl: goes on with other settings in {run_dir}: {changed}", flush=True)
    elif changed:
        raise ConfigError(
            f"{run_dir} holds a run with other settings ({changed}). Choose another --run-dir, or go on with the new ones: --accept-changes"
        )
    write_text(path, json.dumps(settings, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; return the exit code."""
    return _run(make_parser().parse_intermixed_args(arguments))


def command(arguments: list[str] | None = None) -> int:
    """Do the same as `main`, and leave no process behind, whatever ends it. For use as a main program only."""
    options = make_parser().parse_intermixed_args(arguments)
    with leaving_none():
        return _run(options)


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="research-rl train",
        description=__doc__,
        example="research-rl train recipes/r1_searcher/gpu.yaml --run-dir runs/r1_searcher research_rl.top_k=3",
    )
    parser.add_argument("recipe", type=Path, help="a YAML file; the default run directory is named after its folder and file")
    parser.add_argument(
        "--run-dir", type=Path, default=None, help="directory of the run; default: runs/FOLDER-FILE of the recipe"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue a run with other settings than it has had so far"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, and stages.NAME.until.KEY=VALUE")
    return parser


def _run(options: argparse.Namespace) -> int:
    run_dir = options.run_dir or run_directory(options.recipe)
    try:
        code = train(options.recipe, run_dir, options.overrides, accept_changes=options.accept_changes)
    except (ConfigError, MissingExtraError) as error:
        print(f"research-rl train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = 130
    if code and code != HALTED_CODE:
        print(
            f"research-rl train: ended with exit code {code}. The same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
    return code
