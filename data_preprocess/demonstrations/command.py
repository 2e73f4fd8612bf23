"""``python -m data_preprocess demonstrations``: a cold start without a teacher, from annotated evidence and a running retrieval service."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_preprocess.corpus.cutting import sentence_splitter
from data_preprocess.demonstrations.evidence import Task, task_of
from data_preprocess.demonstrations.make import Made, Maker, NoTokens, summary
from data_preprocess.demonstrations.plan import Habits, plan
from data_preprocess.sources import Row, read_rows
from research_rl.codec import load_codec
from research_rl.command_line import json_object
from research_rl.errors import ConfigError, DataError, missing_extra
from research_rl.files import write_text
from research_rl.inference.served import add_prompting
from research_rl.methods import load_method
from research_rl.questions import read_questions, write_parquet
from research_rl.retrieval import RetrievalClient, RetrievalSettings

BLOCK = 256  # questions whose plans are played side by side


def add_demonstrations(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demonstrations",
        help="a set for supervised training without a teacher: made from annotated evidence and real searches",
        example="python -m data_preprocess demonstrations --method research --questions train.jsonl --rows 500 --out data/demonstrations",
    )
    parser.add_argument("--method", required=True, help="name or dotted path of the Method whose protocol is shown")
    parser.add_argument("--method-options", type=json_object, default={}, help='JSON, for example {"template": "sys"}')
    parser.add_argument(
        "--questions",
        type=Path,
        nargs="+",
        required=True,
        help="FlashRAG questions, JSON lines (.gz too); metadata.supporting_ids or supporting_titles name their evidence",
    )
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000", help="the retrieval service")
    parser.add_argument(
        "--top-k", type=int, default=5, help="passages of a search, as in the training that follows (default 5)"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of train.parquet, dev.parquet and card.json")
    parser.add_argument(
        "--passages",
        type=Path,
        nargs="*",
        default=[],
        help="corpus files: the titles of supporting_ids, where the questions lack them",
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=None, help="most rows in all, or of each file of --questions in turn"
    )
    parser.add_argument("--dev", type=int, default=0, help="of these rows, how many go to dev.parquet (default 0)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of questions, wordings and habits")
    parser.add_argument("--max-searches", type=int, default=3, help="most searches of a row, opened pages included")
    parser.add_argument(
        "--evidence",
        choices=["auto", "all", "any"],
        default="auto",
        help="whether all supporting passages must be found or one does (default: all where metadata.hops is 2 or more)",
    )
    parser.add_argument("--max-quote-words", type=int, default=40, help="most words of a quoted sentence (default 40)")
    for habit, what in (
        ("bare-question", "search with the question as it stands"),
        ("stop-early", "answer although a passage is missing"),
        ("extra-search", "search once more, for nothing"),
    ):
        default = getattr(Habits, habit.replace("-", "_"))
        parser.add_argument(
            f"--{habit}", type=float, default=default, help=f"share of questions that {what} (default {default})"
        )
    parser.add_argument(
        "--tokenizer", help="of the model to be trained: tokens are counted, its special tokens taken out of passages"
    )
    parser.add_argument(
        "--max-observation-tokens", type=int, help="most tokens of a search's result, as in the training to follow"
    )
    parser.add_argument("--max-tokens", type=int, help="most tokens of a row; longer ones are skipped")
    add_prompting(parser)
    parser.set_defaults(run=run_demonstrations)


def run_demonstrations(options: argparse.Namespace) -> dict[str, Any]:
    """Make the rows, write them, and return the card.

    Raises:
        ConfigError: an option has an invalid value, or lacks another that it needs.
        DataError: a file is malformed, or no question led to a row.
        RetrievalError: the service does not answer.
    """
    habits = Habits(options.bare_question, options.stop_early, options.extra_search)
    _check(options, habits)
    files = [_tasks(options, path) for path in options.questions]
    made = asyncio.run(_make(options, files, habits))
    if not made.rows:
        raise DataError(f"no question of {', '.join(map(str, options.questions))} led to a row: {dict(made.reasons)}")
    random.Random(options.seed).shuffle(made.rows)
    card = {"dataset": "demonstrations", "questions": sum(map(len, files)), **summary(made)}
    if options.dev:
        write_parquet(options.out / "dev.parquet", made.rows[: options.dev])
    write_parquet(options.out / "train.parquet", made.rows[options.dev :])
    told = {name: value for name, value in vars(options).items() if name not in ("run", "command", "out")}
    card |= {"dev_rows": options.dev, "options": json.loads(json.dumps(told, default=str))}
    write_text(options.out / "card.json", json.dumps(card, indent=2, ensure_ascii=False))
    return card


def _check(options: argparse.Namespace, habits: Habits) -> None:
    if wrong := {name: share for name, share in vars(habits).items() if not 0 <= share <= 1}:
        raise ConfigError(f"habits are shares between 0 and 1, got {wrong}")
    if options.rows and len(options.rows) not in (1, len(options.questions)):
        raise ConfigError(f"--rows takes one number or one per file ({len(options.questions)}), got {options.rows}")
    if not options.tokenizer and (options.max_observation_tokens or options.max_tokens):
        raise ConfigError("--max-observation-tokens and --max-tokens need --tokenizer, which counts them")
    if options.rows and options.dev >= sum(options.rows):
        raise ConfigError(f"--dev {options.dev} of {sum(options.rows)} rows leaves none to train on")


def _tasks(options: argparse.Namespace, path: Path) -> list[Task]:
    rows = list(read_questions(path))
    lacking = {
        str(identifier)
        for row in rows
        if not row["metadata"].get("supporting_titles")
        for identifier in row["metadata"].get("supporting_ids") or ()
    }
    titles = _titles(options.passages, lacking) if lacking else {}
    if left := lacking - set(titles):
        raise DataError(
            f"{path}: {len(left)} supporting_ids have no supporting_titles beside them and are in none of the files of --passages "
            f"({', '.join(map(str, options.passages)) or 'none given'}), for example {min(left)!r}"
        )
    tasks = [task_of(row, options.evidence, titles) for row in rows]
    random.Random(options.seed).shuffle(tasks)
    return tasks


def _titles(files: Sequence[Path], wanted: set[str]) -> Mapping[str, str]:
    """Return the titles of passages by id."""
    rows = (row.fields for path in files for row in read_rows(str(path)) if isinstance(row, Row))
    return {
        str(fields["id"]): fields.get("title") or str(fields["contents"]).partition("\n")[0]
        for fields in rows
        if str(fields.get("id")) in wanted
    }


async def _make(options: argparse.Namespace, files: Sequence[Sequence[Task]], habits: Habits) -> Made:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra("tqdm", "data") from error
    codec = (
        load_codec(options.tokenizer, bos=options.bos, chat_template_kwargs=options.chat_template_kwargs)
        if options.tokenizer
        else NoTokens()
    )
    split = sentence_splitter("en")
    made = Made()
    async with RetrievalClient(RetrievalSettings(options.retrieval_url, deadline_s=30)) as client:
        method = load_method(options.method, **options.method_options)
        opens = "open" in method.tools
        maker = Maker(
            method,
            codec,
            client,
            lambda task, rng: plan(task, habits, split, options.max_searches, options.max_quote_words, rng, opens),
            options.top_k,
            options.seed,
            options.max_observation_tokens,
            options.max_tokens,
        )
        with tqdm(total=sum(map(len, files)), unit="question", disable=None) as progress:
            for tasks, most in _groups(files, options.rows):
                limit = None if most is None else len(made.rows) + most
                for at in range(0, len(tasks), BLOCK):
                    if limit is not None and len(made.rows) >= limit:
                        break
                    await maker.add(tasks[at : at + BLOCK], made, limit)
                    progress.update(len(tasks[at : at + BLOCK]))
    return made


def _groups(files: Sequence[Sequence[Task]], rows: Sequence[int] | None) -> Iterator[tuple[Sequence[Task], int | None]]:
    """Yield questions and how many rows they may give: each file's, or those of all files, in random order already."""
    if rows and len(rows) == len(files):
        yield from zip(files, rows, strict=True)
    else:
        yield [task for turn in zip_longest(*files) for task in turn if task], rows[0] if rows else None
