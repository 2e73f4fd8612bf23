"""``python -m experiment EXPERIMENT.yaml`` (by `make wikipedia`): a pre-trained model learns to search, measured before and after.

Model, data, index, cold start, reinforcement learning, controls, baselines, report: everything goes to one run directory. After an
interruption at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiment.declaration import check_files, read_declaration
from experiment.running import run_steps
from quickstart.main_program import run_program
from quickstart.preflight import check_same_run, port_is_free, remove_run
from research_rl.command_line import Parser
from research_rl.errors import ConfigError
from research_rl.files import write_text

console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run an experiment; return the exit code."""
    options = make_parser().parse_intermixed_args(arguments)
    return run_program("experiment", lambda: run(options), console, "Run the same command again to continue.")


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="python -m experiment",
        description=__doc__,
        example="python -m experiment recipes/wikipedia/experiment.yaml --data data --run-dir runs/wikipedia --until index",
    )
    parser.add_argument("experiment", type=Path, help="a YAML file that declares the experiment")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/wikipedia"), help="directory for all results")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="directory of the questions and passages that the experiment names"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the training questions' order and of sampling")
    parser.add_argument("--port", type=int, default=8765, help="port of the service; that of the controls has the next port")
    parser.add_argument("--fresh", action="store_true", help="delete the run directory first")
    parser.add_argument("--until", default=None, metavar="STEP", help="end after this step: model, data, index, …")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the experiment, for example sets.nq.questions=40",
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the reinforcement learning")
    return parser


def run(options: argparse.Namespace) -> int:
    """Do the steps; return the exit code.

    Raises:
        ConfigError, DataError, GenerationError, IndexingError, MissingExtraError, RetrievalError: what ended it.
    """
    from experiment.pipeline import Pipeline  # imports SciPy and the readers of corpora

    declaration = read_declaration(options.experiment, options.set)
    check_files(declaration, options.data)
    run_dir: Path = options.run_dir.resolve()
    settings = {
        "experiment": f"{options.experiment.resolve().parent.name}/{options.experiment.name}",
        "seed": options.seed,
        "data": str(options.data.resolve()),
        "overrides": options.overrides,
        **declaration.settings(),
    }
    if not options.fresh:
        check_same_run(run_dir, settings, declaration.defaults(), "wikipedia")
    if not options.fresh and (run_dir / "summary.json").is_file():
        console.print(f"Done already: {run_dir / 'report.html'}. Start over with: make wikipedia-fresh", highlight=False)
        return 0
    if busy := [port for port in (options.port, options.port + 1) if not port_is_free(port)]:
        raise ConfigError(
            f"port {busy[0]} is in use. End the process that has it, or choose another: --port (make wikipedia PORT=…)"
        )
    if options.fresh:
        remove_run(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "settings.json", json.dumps(settings, indent=1))
    pipeline = Pipeline(declaration, options.data.resolve(), run_dir, options.seed, options.port, options.overrides, console)
    run_steps(pipeline.steps(), pipeline.phases, console, options.until)
    if (run_dir / "summary.json").is_file():
        show(run_dir)
    return 0


def show(run_dir: Path) -> None:
    """Print the result."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    measured = [when for when in ("start", "trained") if all(when in found for found in summary["sets"].values())]
    table = Table("", "questions", "EM", "F1", "searches", title=" → ".join(measured))
    for name, found in summary["sets"].items():
        figures = [" → ".join(f"{found[when][metric]:.3f}" for when in measured) for metric in ("em", "f1", "searches")]
        table.add_row(name, str(found["start"]["n"]), *figures)
    console.print(table)
    console.print(f"[bold]{run_dir / 'report.html'}[/]  (figures: summary.json)", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
