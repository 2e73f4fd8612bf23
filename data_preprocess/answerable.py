"""``python -m data_preprocess answerable``: the questions of a set that a service can help with, for training.

A question whose answer no search can reach teaches little: all its rollouts fail alike, and their group has no advantages. But where only
questions are kept that the first search answers, a policy learns that a second one is never worth it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocess.convert import Conversion, convert, source_of, write_split
from data_preprocess.demonstrations.evidence import Task, holds, task_of
from data_preprocess.sources import read_rows
from research_rl.errors import ConfigError
from research_rl.metrics import answer_rank
from research_rl.questions import to_flashrag
from research_rl.recall import searched
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import SearchFunction
from research_rl.types import Passage


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
        "--top-k", type=int, default=5, help="passages of a search, one of which must hold an answer (default 5)"
    )
    parser.add_argument(
        "--searches",
        type=int,
        default=1,
        help="after so many an answer must have been found: the bare question, then the titles of its supporting passages, each as soon as "
        "the question or a passage names it (default 1)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of SPLIT.jsonl, .parquet, .dropped.jsonl and .card.json"
    )
    parser.add_argument("--split", default="train", help="name of the split")
    parser.set_defaults(run=run_answerable)


def run_answerable(options: argparse.Namespace) -> dict[str, Any]:
    """Write one split and return its card. Yes/no questions stay: their answers are in no passage to be found.

    Raises:
        ConfigError: --top-k or --searches is not positive.
        DataError: the file is missing or malformed, or no question is left.
        RetrievalError: the service does not answer.
    """
    for name in ("top_k", "searches"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    done: Conversion = convert("flashrag", read_rows(str(options.questions)), options.split, strict=True)
    tasks = [task_of(to_flashrag(question), "any", {}) for question in done.questions]

    async def ask() -> dict[str, int]:
        async with RetrievalClient(RetrievalSettings(options.retrieval_url)) as client:
            return await searches_needed(
                [task for task in tasks if not task.yes_no], client.search, options.top_k, options.searches
            )

    needed = asyncio.run(ask())
    reason = f"no answer in the first {options.top_k} passages" + (
        f" of {options.searches} searches" if options.searches > 1 else ""
    )
    lost = {name for name, searches in needed.items() if not searches}
    for question in done.questions:
        if question.id in lost:
            done.drop(question.id, reason, question.question)
    done.questions = [question for question in done.questions if question.id not in lost]
    card = {"dataset": "answerable", "top_k": options.top_k, "searches": options.searches}
    counts = {str(number): count for number, count in sorted(Counter(needed.values()).items()) if number}
    card |= {"questions_by_searches": counts, "source": source_of(str(options.questions), None, None)}
    return write_split(options.out, options.split, done, card)


async def searches_needed(tasks: Sequence[Task], search: SearchFunction, top_k: int, most: int) -> dict[str, int]:
    """Return by question's id how many searches show an answer; 0 where `most` do not.

    The first query is the bare question. A further one is the title of a supporting passage that was not shown yet, and that the question
    or a passage shown before names: what a policy could know.
    """
    found = dict.fromkeys((task.id for task in tasks), 0)
    shown: dict[str, list[Passage]] = {task.id: [] for task in tasks}
    asked: dict[str, set[str]] = {task.id: set() for task in tasks}
    wanted = [(task, task.question) for task in tasks]
    for number in range(1, most + 1):
        async for (task, query), passages in searched(wanted, lambda one: one[1], search, top_k, "data"):
            asked[task.id].add(query)
            shown[task.id] += passages
            if answer_rank((passage.contents for passage in passages), task.answers):
                found[task.id] = number
        left = [task for task, _ in wanted if not found[task.id]]
        wanted = [(task, title) for task in left if (title := _next_title(task, shown[task.id], asked[task.id]))]
    return found


def _next_title(task: Task, shown: Sequence[Passage], asked: set[str]) -> str:
    """Return the title of a supporting passage that is named, was not shown and not asked for; empty if there is none."""
    seen = "\n".join((task.question, *(passage.contents for passage in shown)))
    left = [one for one in task.needed if one.name and one.name not in asked and not any(map(one.is_, shown))]
    return next((one.name for one in left if holds(seen, one.name)), "")
