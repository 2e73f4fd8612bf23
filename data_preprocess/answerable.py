"""``python -m data_preprocess answerable``: the questions of a set that a service can help with, for training.

A question whose answer is not among the first passages teaches little: all its rollouts fail alike, and their group has no advantages.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from data_preprocess.convert import Conversion, convert, source_of, write_split
from data_preprocess.sources import read_rows
from research_rl.errors import ConfigError
from research_rl.metrics import is_yes_no
from research_rl.questions import to_flashrag
from research_rl.recall import answer_recall
from research_rl.retrieval import RetrievalClient, RetrievalSettings


def add_answerable(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "answerable",
        help="of a converted set, the questions to which a service finds a passage with an answer",
        example="python -m data_preprocess answerable --questions data/nq/train.jsonl --out data/nq_answerable",
    )
    parser.add_argument("--questions", type=Path, required=True, help="a converted set: …/train.jsonl")
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000", help="the retrieval service")
    parser.add_argument(
        "--top-k", type=int, default=5, help="an answer must be in so many passages of the bare question (default 5)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of SPLIT.jsonl, .parquet, .dropped.jsonl and .card.json"
    )
    parser.add_argument("--split", default="train", help="name of the split")
    parser.set_defaults(run=run_answerable)


def run_answerable(options: argparse.Namespace) -> dict[str, Any]:
    """Write one split and return its card. Yes/no questions stay: their answers are in no passage to be found.

    Raises:
        ConfigError: --top-k is not positive.
        DataError: the file is missing or malformed, or no question is left.
        RetrievalError: the service does not answer.
    """
    if options.top_k < 1:
        raise ConfigError(f"--top-k must be at least 1, got {options.top_k}")
    done: Conversion = convert("flashrag", read_rows(str(options.questions)), options.split, strict=True)
    asked = [question for question in done.questions if not is_yes_no(question.golden_answers)]

    async def ask() -> list[int]:
        async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
            return await answer_recall([to_flashrag(question) for question in asked], client, options.top_k)

    ranks = asyncio.run(ask())
    lost = {question.id for question, rank in zip(asked, ranks, strict=True) if not rank}
    for question in done.questions:
        if question.id in lost:
            done.drop(question.id, f"no answer in the first {options.top_k} passages", question.question)
    done.questions = [question for question in done.questions if question.id not in lost]
    card = {"dataset": "answerable", "top_k": options.top_k, "source": source_of(str(options.questions), None, None)}
    return write_split(options.out, options.split, done, card)
