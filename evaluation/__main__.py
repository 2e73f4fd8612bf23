"""``python -m evaluation``: measure a served model, or a retrieval service alone."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from data_preprocess.questions import read_questions
from evaluation.rescore import rescore_file
from evaluation.served import add_model, add_questions, open_served
from evaluation.summary import mean_metrics
from research_rl.errors import ConfigError, DataError, GenerationError, MissingExtraError, RetrievalError, missing_extra
from research_rl.files import write_jsonl
from research_rl.methods.base import load_method
from research_rl.metrics import METRICS, NORMALIZERS
from research_rl.retrieval import RetrievalClient, RetrievalSettings

try:
    from evaluation.run import answer_recall, evaluate
    from evaluation.score import score_file, table
except ModuleNotFoundError as error:
    sys.exit(f"evaluation: {missing_extra(error.name or 'tqdm', 'eval')}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="roll out questions over an OpenAI-compatible server and a retrieval service")
    add_model(run)
    run.add_argument("--out", type=Path, required=True, help="where the trajectories go, as JSON lines")
    rescore = commands.add_parser("rescore", help="the rewards of a method for responses that somebody else recorded")
    rescore.add_argument("input", type=Path, help="JSON lines, plain or .gz")
    rescore.add_argument("--method", required=True, help="name or dotted path of the Method")
    rescore.add_argument("--preset", default=None, help="the method's option `preset`")
    rescore.add_argument("--method-options", type=json.loads, default={}, help="further options, as JSON")
    rescore.add_argument("--response-field", required=True, help="the response, observations included, without the prompt")
    rescore.add_argument("--gold-field", required=True, help="the golden answer, or a list of them")
    rescore.add_argument("--group-field", default=None, help="rows with the same value here are rollouts of one question")
    rescore.add_argument("--out", type=Path, required=True, help="every row again, with `score` and `components`")
    score = commands.add_parser("score", help="answer metrics for anybody's predictions")
    score.add_argument("input", type=Path, help="JSON lines, plain or .gz")
    score.add_argument("--pred-field", required=True, help="the predicted answer, a text")
    score.add_argument("--gold-field", required=True, help="the golden answer, or a list of them")
    score.add_argument("--metrics", default=",".join(METRICS), help=f"comma-separated, of: {', '.join(METRICS)}")
    score.add_argument(
        "--normalizer", default="squad", choices=sorted(NORMALIZERS), help="squad deletes punctuation; r1_searcher: space"
    )
    score.add_argument("--judge-field", default=None, help="a judge's recorded verdict (true or false), reported as `judge`")
    score.add_argument(
        "--method", default=None, help="with --response-field: the Method that reads the responses, to count searches"
    )
    score.add_argument("--method-options", type=json.loads, default={})
    score.add_argument("--response-field", default=None, help="the whole response, as for rescore")
    score.add_argument("--json", action="store_true", help="shares of 1 as JSON, not a table in percent")
    recall = commands.add_parser("recall", help="how often a golden answer is in the top-k passages for the bare question")
    for command in (run, recall):
        add_questions(command)
    options = parser.parse_args(arguments)
    try:
        if options.command == "rescore":
            chosen = {**options.method_options, **({"preset": options.preset} if options.preset else {})}
            method = load_method(options.method, **chosen)
            fields = options.response_field, options.gold_field, options.group_field
            print(json.dumps(rescore_file(options.input, options.out, method, *fields)))
            return 0
        if options.command == "score":
            method = load_method(options.method, **options.method_options) if options.method else None
            names = [name.strip() for name in options.metrics.split(",") if name.strip()]
            result = score_file(
                options.input, options.pred_field, options.gold_field, names, options.normalizer,
                judge_field=options.judge_field, method=method, response_field=options.response_field,
            )  # fmt: skip
            print(json.dumps(result) if options.json else table(result))
            return 0
        questions = list(read_questions(options.questions))
        figures = asyncio.run(_run(options, questions) if options.command == "run" else _recall(options, questions))
    except (ConfigError, DataError, GenerationError, MissingExtraError, RetrievalError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return int(figures.get("retrieval_failed", 0) > 0)


async def _recall(options: argparse.Namespace, questions: list[dict[str, Any]]) -> dict[str, Any]:
    async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
        found = await answer_recall(questions, client, options.top_k)
    return {f"answer_recall@{options.top_k}": round(sum(found) / len(found), 4), "found": sum(found), "n": len(found)}


async def _run(options: argparse.Namespace, questions: list[dict[str, Any]]) -> dict[str, Any]:
    method, codec, budget, server = open_served(options)
    async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
        records = await evaluate(method, codec, questions, budget, server.generate, client)
    await server.close()
    write_jsonl(options.out, records)
    measured = [record for record in records if "metrics" in record]
    return {**mean_metrics(measured), "retrieval_failed": len(records) - len(measured)}


if __name__ == "__main__":
    sys.exit(main())
