"""``python -m data_preprocess``: make data sets for training, serving and evaluation."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from data_preprocess.cold_start import ACCEPT, SELECTION, same_sampling, sample, select
from data_preprocess.formats import read_questions, write_verl_parquet
from data_preprocess.world import Split
from data_preprocess.world.write import write_world
from evaluation.served import Served, add_model, add_questions, open_served
from research_rl.errors import DataError, GenerationError, MissingExtraError
from research_rl.retrieval import RetrievalClient, RetrievalSettings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_preprocess", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    world = commands.add_parser("world", help="a fictional world: corpus, questions, and the control without evidence")
    world.add_argument("--out", type=Path, required=True)
    world.add_argument("--seed", type=int, default=1)
    world.add_argument("--scale", type=float, default=1.0, help="1.0 is 2,100 passages")
    for split, count in (("train", 2_000), ("dev", 60), ("test", 200)):
        world.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} questions (default {count})")
    questions = commands.add_parser("questions", help="FlashRAG questions (JSON lines) to verl parquet")
    questions.add_argument("--input", type=Path, required=True)
    questions.add_argument("--out", type=Path, required=True, help="the parquet file to write")
    questions.add_argument("--data-source", required=True, help="name under which verl reports its metrics")
    questions.add_argument("--split", required=True, help="train, dev or test")
    cold = commands.add_parser(
        "cold-start", help="rejection sampling over an OpenAI-compatible server: a set for supervised training"
    )
    add_questions(cold)
    add_model(cold)
    cold.set_defaults(method="r1_searcher_pp", temperature=1.0, max_searches=8)
    cold.add_argument("--out", type=Path, required=True, help="directory of samples.jsonl, train.parquet and card.json")
    cold.add_argument("--samples", type=int, default=8, help="rollouts of each question")
    cold.add_argument("--accept", default="method", choices=["method", *sorted(ACCEPT)], help="what counts as right")
    cold.add_argument("--per-question", type=int, default=1, help="most rows of one question, fewest searches first")
    cold.add_argument("--rows", type=int, default=None, help="most rows in all (the paper: 805)")
    cold.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        if options.command == "cold-start":
            print(json.dumps(cold_start(options)))
        elif options.command == "world":
            counts: dict[Split, int] = {"train": options.train, "dev": options.dev, "test": options.test}
            print(json.dumps(write_world(options.out, options.seed, options.scale, counts)))
        else:
            rows = list(read_questions(options.input))
            written = write_verl_parquet(options.out, rows, options.data_source, options.split)
            print(f"{options.out}: {written} questions")
    except (DataError, MissingExtraError, GenerationError, ValueError, OSError) as error:
        print(f"data_preprocess: {error}", file=sys.stderr)
        return 1
    return 0


def cold_start(options: argparse.Namespace) -> dict[str, Any]:
    """Sample what is left, select, and return the card."""
    served = open_served(options)
    questions = list(read_questions(options.questions))
    log = options.out / "samples.jsonl"
    same_sampling(
        options.out / "sampling.json", {name: str(value) for name, value in vars(options).items() if name not in SELECTION}
    )
    asyncio.run(_sample(options, served, questions, log))
    return select(served.method, log, options.out, options.per_question, options.rows, options.seed)


async def _sample(options: argparse.Namespace, served: Served, questions: list[dict[str, Any]], log: Path) -> None:
    method, codec, budget, server = served
    accept = getattr(method, "right", ACCEPT["cover_em_tokens"]) if options.accept == "method" else ACCEPT[options.accept]
    async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
        arguments = (method, codec, questions, options.samples, accept, budget, server.generate, client, log)
        try:
            await sample(*arguments)
        except ExceptionGroup as group:  # a server is gone: one of its errors says it all
            raise group.exceptions[0] from None
    await server.close()


if __name__ == "__main__":
    sys.exit(main())
