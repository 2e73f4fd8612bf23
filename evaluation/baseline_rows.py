"""``python -m evaluation baseline-rows NAME``: make rows for the supervised training of a baseline, for a fair comparison.

A model that was trained on demonstrations of searching should be compared with one that was trained, on the same questions, to answer at
once (`direct`) or from the passages of one search (`naive_rag`): on FlashRAG's own prompts, with a golden answer to each.
Train on the file with a recipe for
supervised training (`python -m research_rl.train`), and measure the model with `python -m evaluation baseline NAME`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evaluation.baselines import add_prompt_options, answer, prepare
from evaluation.flashrag_parts import ServedRetriever, ShownGenerator
from research_rl.errors import ConfigError, DataError
from research_rl.questions import read_questions, write_parquet

NAMES = ("direct", "naive_rag")  # the pipelines with one prompt and one answer
THREADS = 8


def add_baseline_rows(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "baseline-rows",
        help="make rows for supervised training of a baseline from golden answers",
        example="python -m evaluation baseline-rows direct --questions train.jsonl --tokenizer runs/quickstart/model --out direct.parquet",
    )
    parser.add_argument("name", choices=NAMES, help="the pipeline")
    parser.add_argument("--questions", type=Path, nargs="+", required=True, help="FlashRAG questions, JSON lines")
    parser.add_argument(
        "--ids", type=Path, default=None, help="parquet of demonstrations: use only the questions in its column id"
    )
    parser.add_argument("--rows", type=int, default=None, help="most rows (default all), chosen by --seed")
    parser.add_argument("--seed", type=int, default=1, help="seed of choice and order")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id; the chat template is taken from it")
    parser.add_argument("--out", type=Path, required=True, help="the parquet file")
    add_prompt_options(parser)
    parser.set_defaults(run=run_baseline_rows)


def run_baseline_rows(options: argparse.Namespace) -> dict[str, Any]:
    """Write the rows; return their number, and the number of `--ids` without a question in the files.

    Raises:
        ConfigError: the number of rows is not positive, or the tokenizer's chat template does not work.
        DataError: a file is malformed, or no question is left.
        MissingExtraError: FlashRAG is not installed.
        RetrievalError: the service does not answer.
    """
    if options.rows is not None and options.rows < 1:
        raise ConfigError(f"--rows must be at least 1, got {options.rows}")
    questions = [row for path in options.questions for row in read_questions(path)]
    lost = 0
    if options.ids:
        wanted = _ids(options.ids)
        questions = [row for row in questions if row["id"] in wanted]
        lost = len(wanted - {row["id"] for row in questions})
    if not questions:
        raise DataError(f"no question is left of {', '.join(map(str, options.questions))}")
    random.Random(options.seed).shuffle(questions)
    questions = questions[: options.rows]
    with contextlib.redirect_stdout(sys.stderr):  # FlashRAG prints a line per question
        config, tokenizer, chat = prepare(options)

        def one(row: dict[str, Any]) -> dict[str, Any]:
            generator = ShownGenerator(row["golden_answers"][0], tokenizer)
            answer(options, config, generator, ServedRetriever(options.retrieval_url, options.top_k), row, chat)
            return supervised_row(row["id"], generator)

        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(one, questions))
    return {
        "rows": write_parquet(options.out, rows),
        "ids_without_question": lost,
        "chat_template": chat,
        "out": str(options.out),
    }


def supervised_row(identifier: str, generator: ShownGenerator) -> dict[str, Any]:
    """Return a row in the form that `research_rl.codec.encode_row` reads."""
    (prompt,) = generator.prompts
    segments = [{"text": generator.answer, "learn": True}]
    return {"id": identifier, "prompt": json.dumps(prompt, ensure_ascii=False), "prefill": "", "segments": segments}


def _ids(path: Path) -> set[str]:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"no demonstrations at {path}")
    return set(pq.read_table(path, columns=["id"])["id"].to_pylist())
