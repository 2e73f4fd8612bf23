"""``python -m data_preprocess cold-start`` and ``… select``: both sample over a model's server and a retrieval service, then choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_preprocess import cold_start, difficulty
from data_preprocess.convert import convert
from data_preprocess.sources import read_rows
from research_rl.errors import DataError
from research_rl.inference.sampling import ACCEPT, Metric, Outcome, acceptance, read_log
from research_rl.inference.served import add_model, add_questions, add_sampling, open_served, sample_served
from research_rl.questions import read_questions, to_flashrag
from research_rl.types import Trajectory

CHOICE = frozenset(
    {"per_question", "rows", "seed", "by", "bounds", "ratio", "rollouts", "split"}
)  # concern the choice among the samples only, so they may change from run to run


def _common(parser: argparse.ArgumentParser, files: str) -> None:
    add_questions(parser)
    add_model(parser)
    add_sampling(parser)
    parser.set_defaults(temperature=1.0, max_searches=8)
    parser.add_argument("--out", type=Path, required=True, help=f"directory of {files}")
    parser.add_argument("--accept", default="method", choices=["method", *sorted(ACCEPT)], help="what counts as right")
    parser.add_argument("--rows", type=int, default=None, help="most rows in all")
    parser.add_argument("--seed", type=int, default=1, help="of the choice among what was sampled")


def add_cold_start(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cold-start",
        help="rejection sampling: a set for supervised training (R1-Searcher++: 805 rows)",
        example="python -m data_preprocess cold-start --questions train.jsonl --model mine --tokenizer mine/ \\\n    "
        "--rows 805 --out data/cold_start",
    )
    _common(parser, "samples.jsonl, train.parquet and card.json")
    parser.set_defaults(method="r1_searcher_pp", run=run_cold_start)
    parser.add_argument("--samples", type=int, default=8, help="rollouts of each question")
    parser.add_argument("--per-question", type=int, default=1, help="most rows of one question, fewest searches first")


def add_select(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "select",
        help="questions by difficulty for a model, from its own rollouts with search",
        example="python -m data_preprocess select --questions train.jsonl --model mine --tokenizer mine/ \\\n    "
        "--ratio medium=1,difficult=2 --rows 2000 --out data/selected",
    )
    _common(parser, "rollouts.jsonl, counts.jsonl, and the chosen SPLIT.jsonl, .parquet and .card.json")
    parser.set_defaults(run=run_select)
    parser.add_argument(
        "--rollouts", "--samples", type=int, default=20, help="of each question (raising it adds to those that are there)"
    )
    parser.add_argument(
        "--stop-early",
        action="store_true",
        help="sample the rollouts of a question one after the other, until the first success: cheaper, but no pass rate",
    )
    parser.add_argument("--by", default="first-success", choices=sorted(difficulty.BOUNDS), help="how difficulty is measured")
    parser.add_argument(
        "--bounds", default=None, metavar="LOW,HIGH", help="of medium, both inclusive (default 10,20; for pass-rate 0.1,0.9)"
    )
    parser.add_argument("--ratio", default="medium=1", help="shares of the buckets, for example medium=1,difficult=2")
    parser.add_argument("--split", default="train", help="name of the split")


def run_cold_start(options: argparse.Namespace) -> dict[str, Any]:
    """Sample what is left, select, and return the card."""
    served = open_served(options)
    questions = list(read_questions(options.questions))
    accept = acceptance(served.method, options.accept)

    def keep(trajectory: Trajectory, row: dict[str, Any]) -> Outcome:
        return cold_start.outcome(served.method, trajectory, row["golden_answers"], accept)

    log = options.out / "samples.jsonl"
    sample_served(options, served, questions, options.samples, log, keep, CHOICE)
    return cold_start.select(served.method, log, questions, options.out, options.per_question, options.rows, options.seed)


def run_select(options: argparse.Namespace) -> dict[str, Any]:
    """Sample what is left, select, and return the card."""
    selection = difficulty.Selection(
        options.by, _bounds(options.bounds, options.by), difficulty.parse_ratio(options.ratio), options.rows, options.seed
    )
    selection.check(options.rollouts, options.stop_early)
    if not options.questions.is_file():
        raise DataError(f"no questions at {options.questions}: give a file of JSON lines with id, question and golden_answers")
    questions = convert("flashrag", read_rows(str(options.questions)), options.split, strict=True).questions
    served = open_served(options)
    accept: Metric = acceptance(served.method, options.accept)

    def keep(trajectory: Trajectory, row: dict[str, Any]) -> Outcome:
        return difficulty.outcome(served.method, trajectory, row["golden_answers"], accept)

    log = options.out / "rollouts.jsonl"
    rows = [to_flashrag(question) for question in questions]
    enough = (lambda found: found["right"]) if options.stop_early else None
    this_run = sample_served(options, served, rows, options.rollouts, log, keep, CHOICE, enough)
    sampled = {
        name: {n: found for n, found in outcomes.items() if n <= options.rollouts} for name, outcomes in read_log(log).items()
    }
    card = {
        "dataset": "selected",
        "questions_file": str(options.questions),
        "model": options.model,
        "method": served.method.name,
        "accept": options.accept,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "last_run": this_run,
    }
    return difficulty.select(questions, sampled, selection, options.out, card, options.split)


def _bounds(text: str | None, by: str) -> tuple[float, float]:
    if text is None:
        return difficulty.BOUNDS[by]
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise DataError(f"--bounds takes two numbers, for example 10,20; got {text!r}") from None
    return low, high
