"""``python -m evaluation``: measure a served model, recorded answers, or a retrieval service alone."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.baseline_rows import add_baseline_rows
from evaluation.baselines import add_baseline
from evaluation.compare import add_report
from evaluation.config import defaults_from
from evaluation.judge import add_judge
from evaluation.rescore import rescore_file
from research_rl.command_line import Parser, json_object, show
from research_rl.errors import USER_ERRORS
from research_rl.inference.served import TOP_K, add_model, add_questions, add_sampling
from research_rl.methods import load_method
from research_rl.metrics import METRICS, NORMALIZERS
from research_rl.questions import read_questions
from research_rl.retrieval import RetrievalClient, RetrievalSettings

RANKS = (1, 5, 10, 20, 50, 100)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = make_parser(given).parse_args(given)
        result = options.run(options)
    except USER_ERRORS as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluation: interrupted; the same command goes on", file=sys.stderr)
        return 130
    show(result if isinstance(result, str) else json.dumps(result))
    return 0


def make_parser(arguments: Sequence[str] = ()) -> Parser:
    """Return the parser for these arguments, because `run --config FILE` changes defaults."""
    parser = Parser(
        prog="python -m evaluation",
        description=__doc__,
        example="python -m evaluation score answers.jsonl --pred-field pred --gold-field answer",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run(commands, arguments)
    add_rescore(commands)
    add_score(commands)
    add_baseline(commands)
    add_baseline_rows(commands)
    add_judge(commands)
    add_recall(commands)
    add_report(commands)
    return parser


def add_run(commands: Any, arguments: Sequence[str]) -> None:
    """Add the evaluation of a served model."""
    parser = commands.add_parser(
        "run",
        help="roll out questions over an OpenAI-compatible server and a retrieval service",
        example="python -m evaluation run --serve --model mine --tokenizer runs/quickstart/model \\\n    "
        "--questions test.jsonl --out rollouts.jsonl",
    )
    add_questions(parser)
    add_model(parser)
    add_sampling(parser)
    parser.add_argument("--samples", type=int, default=1, help="rollouts per question, for avg@k and pass@k")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file for the rollouts, JSON lines; run again, the command adds the missing ones",
    )
    parser.add_argument("--serve", action="store_true", help="start vLLM for the model in --tokenizer, and end it afterwards")
    parser.add_argument(
        "--serve-options",
        default="",
        help='options of vLLM, for example "--max-model-len 4096"; on a CPU it computes in the type that is fastest there, '
        "unless --dtype is among them",
    )
    parser.add_argument(
        "--config", type=Path, default=None, help="YAML with any of these options, which the command line overrides"
    )
    parser.set_defaults(run=run_questions)
    if list(arguments[:1]) == ["run"]:
        defaults_from(parser, arguments)


def run_questions(options: argparse.Namespace) -> dict[str, Any]:
    """Roll out the questions and return the summary."""
    from evaluation.run import run  # imports SciPy

    return run(options)


def add_rescore(commands: Any) -> None:
    """Add the rewards of recorded responses."""
    parser = commands.add_parser(
        "rescore",
        help="a method's rewards for recorded responses",
        example="python -m evaluation rescore answers.jsonl --method r1_searcher \\\n    "
        "--response-field text --gold-field answer --out rewards.jsonl",
    )
    parser.add_argument("input", type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--method", required=True, help="name or dotted path of the Method")
    parser.add_argument("--preset", default=None, help="the method's option `preset`")
    parser.add_argument("--method-options", type=json_object, default={}, help="further options of the method, as JSON")
    parser.add_argument(
        "--response-field",
        required=True,
        help="the response with its observations but without the prompt; for tool_calls also a list of messages",
    )
    parser.add_argument("--gold-field", default="golden_answers", help="the golden answer, or a list of them")
    parser.add_argument("--group-field", default=None, help="rows with the same value here are rollouts of one question")
    parser.add_argument("--out", type=Path, required=True, help="file for the rows, with `score` and `components` added")
    parser.set_defaults(run=run_rescore)


def run_rescore(options: argparse.Namespace) -> dict[str, Any]:
    """Write the scores and return the summary."""
    chosen = {**options.method_options, **({"preset": options.preset} if options.preset else {})}
    method = load_method(options.method, **chosen)
    return rescore_file(options.input, options.out, method, options.response_field, options.gold_field, options.group_field)


def add_score(commands: Any) -> None:
    """Add the answer metrics of recorded predictions."""
    parser = commands.add_parser(
        "score",
        help="answer metrics for predictions from any source",
        example="python -m evaluation score answers.jsonl --pred-field pred --gold-field answer --metrics em,f1",
    )
    parser.add_argument("input", type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--pred-field", default="answer", help="the predicted answer, a text")
    parser.add_argument("--gold-field", default="golden_answers", help="the golden answer, or a list of them")
    parser.add_argument("--metrics", default=",".join(METRICS), help=f"comma-separated, of: {', '.join(METRICS)}")
    parser.add_argument(
        "--normalizer",
        default="squad",
        choices=sorted(NORMALIZERS),
        help="squad deletes punctuation; r1_searcher replaces it by spaces",
    )
    parser.add_argument("--judge-field", default=None, help="a judge's recorded verdict (true or false), reported as `judge`")
    parser.add_argument(
        "--method", default=None, help="with --response-field: the Method that reads the responses, to count searches"
    )
    parser.add_argument("--method-options", type=json_object, default={}, help="options of the method, as JSON")
    parser.add_argument("--response-field", default=None, help="the whole response, as for rescore")
    parser.add_argument("--json", action="store_true", help="print JSON with values from 0 to 1 instead of a table in percent")
    parser.set_defaults(run=run_score)


def run_score(options: argparse.Namespace) -> dict[str, Any] | str:
    """Return the metrics, as a table or for JSON."""
    from evaluation.score import score_file, table  # imports SciPy

    method = load_method(options.method, **options.method_options) if options.method else None
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    result = score_file(
        options.input,
        options.pred_field,
        options.gold_field,
        names,
        options.normalizer,
        judge_field=options.judge_field,
        method=method,
        response_field=options.response_field,
    )
    return result if options.json else table(result)


def add_recall(commands: Any) -> None:
    """Add the measurement of a retrieval service alone."""
    parser = commands.add_parser(
        "recall",
        help="how often the top-k passages for the question itself contain a golden answer",
        example="python -m evaluation recall --questions test.jsonl --top-k 20",
    )
    add_questions(parser)
    parser.add_argument("--top-k", type=int, default=TOP_K, help="passages per search")
    parser.set_defaults(run=run_recall)


def run_recall(options: argparse.Namespace) -> dict[str, Any]:
    """Return the answer recall at k, and at the usual smaller k."""
    from research_rl.recall import answer_recall  # imports tqdm

    top_k = options.top_k
    questions = list(read_questions(options.questions))

    async def ask() -> list[int]:
        async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
            return await answer_recall(questions, client, top_k)

    ranks = asyncio.run(ask())
    found = {k: sum(0 < rank <= k for rank in ranks) for k in sorted({*RANKS, top_k}) if k <= top_k}
    return {
        **{f"answer_recall@{k}": round(count / len(ranks), 4) for k, count in found.items()},
        "found": found[top_k],
        "n": len(ranks),
    }


if __name__ == "__main__":
    sys.exit(main())
