"""``python -m data_preprocess mix``: converted sets in a ratio, or whole, drawn by seed, no question twice."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_preprocess.convert import Conversion, convert, source_of, write_split
from data_preprocess.sources import read_rows
from research_rl.errors import DataError
from research_rl.metrics import normalize_answer
from research_rl.questions import Question


def add_mix(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "mix",
        help="converted sets in a ratio, or whole",
        example="python -m data_preprocess mix --part a/train.jsonl=2 --part b/train.jsonl=1 --out data/mixed",
    )
    parser.add_argument(
        "--part",
        action="append",
        required=True,
        metavar="FILE.jsonl[=SHARE]",
        help="for example a/train.jsonl=2; without shares: all of every part",
    )
    parser.add_argument("--rows", type=int, default=None, help="questions in all (default: as many as the ratio allows)")
    parser.add_argument("--out", type=Path, required=True, help="directory of SPLIT.jsonl, .parquet and .card.json")
    parser.add_argument("--split", default="train", help="name of the split")
    parser.add_argument("--seed", type=int, default=1, help="of choice and order")
    parser.set_defaults(run=run_mix)


def run_mix(options: argparse.Namespace) -> dict[str, Any]:
    """Draw from each part by seed, shuffle, write one split, and return its card. A question of two parts counts for the first."""
    done = Conversion()
    parts: list[tuple[Path, Fraction | None, list[Question]]] = []
    asked: set[str] = set()
    ids: set[str] = set()
    for text in options.part:
        path, weight = _part(text)
        read = convert("flashrag", read_rows(str(path)), options.split, strict=True, data_source=path.parent.name)
        done.rows += read.rows
        questions = []
        for question in read.questions:
            key = normalize_answer(question.question)
            if key in asked:
                done.drop(f"{path}, id {question.id}", "in an earlier part", question.question)
                continue
            if question.id in ids:
                question = replace(question, id=f"{question.data_source}:{question.id}")
                done.renamed += 1
            asked.add(key)
            ids.add(question.id)
            questions.append(question)
        parts.append((path, weight, questions))
    weights = [weight for _, weight, _ in parts if weight is not None]
    if weights and len(weights) < len(parts):
        raise DataError(f"give every part a share, or none of them; got {options.part}")
    if not weights and options.rows is not None:
        raise DataError("--rows needs a share for every part, for example a/train.jsonl=2")
    available = [len(questions) for _, _, questions in parts]
    sizes = shares(weights, available, options.rows, [str(path) for path, _, _ in parts]) if weights else available
    rng = random.Random(options.seed)
    for (_, _, questions), size in zip(parts, sizes, strict=True):
        done.questions += rng.sample(questions, size)
    done.not_drawn = sum(len(questions) for _, _, questions in parts) - len(done.questions)
    rng.shuffle(done.questions)
    card = {
        "dataset": "mix",
        "seed": options.seed,
        "parts": [
            {**source_of(str(path), None, None), "path": str(path), "share": str(weight or "all"), "questions": size}
            for (path, weight, _), size in zip(parts, sizes, strict=True)
        ],
    }
    return write_split(options.out, options.split, done, card)


def _part(text: str) -> tuple[Path, Fraction | None]:
    name, equals, share = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), None
    try:
        weight = Fraction(share)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if not name or weight <= 0:
        raise DataError(f"--part takes a file and its share, for example a/train.jsonl=2; got {text!r}")
    return Path(name), weight


def shares(weights: Sequence[Fraction], available: Sequence[int], rows: int | None, names: Sequence[str]) -> list[int]:
    """Return how many to draw of each part: in the ratio of the weights (above 0), `rows` in all, or as many as there are.

    Rounded by largest remainder, so that the numbers add up to `rows`.

    Raises:
        DataError: a part has too few; the message says how many rows there can be.
    """
    total = sum(weights)
    most = min(int(count * total / weight) for weight, count in zip(weights, available, strict=True))
    rows = most if rows is None else rows
    exact = [rows * weight / total for weight in weights]
    sizes = [int(share) for share in exact]
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])[: rows - sum(sizes)]:
        sizes[index] += 1
    short = [
        f"{name} has {count} for {size}" for name, count, size in zip(names, available, sizes, strict=True) if size > count
    ]
    if short or rows < 1:
        raise DataError(
            f"too few questions for {rows} rows in this ratio ({'; '.join(short) or 'one part has none'}): at most {most} rows"
        )
    return sizes
