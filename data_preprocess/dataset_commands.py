"""``python -m data_preprocess DATASET``: its options, and the order of its steps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_preprocess.contexts import PASSAGES, Contexts
from data_preprocess.convert import (
    MALFORMED,
    Conversion,
    Limits,
    convert,
    sample,
    source_of,
    without_overlap,
    write_split,
)
from data_preprocess.datasets import DATASETS
from data_preprocess.datasets.two_wiki import read_aliases
from data_preprocess.overlap import Overlap
from data_preprocess.sources import read_rows
from research_rl.errors import ConfigError, DataError
from research_rl.files import write_atomically
from research_rl.questions import read_questions

EVALUATION = ("dev", "test", "validation")  # splits that keep questions asked twice: figures are compared over all of them
HUB_SPLITS = {"dev": "validation"}
SHOWN = 10  # malformed rows printed on the terminal; all of them are in SPLIT.dropped.jsonl
FEW = 100  # questions to train on: with fewer, a training repeats them from its first steps on


def add_dataset(commands: Any, name: str) -> None:
    """Add a data set's command."""
    dataset = DATASETS[name]
    parser = commands.add_parser(
        name,
        help=f"{dataset.files}{f'; hub: {dataset.hub}' if dataset.hub else ''}",
        example=f"python -m data_preprocess {name} --input train=FILE --hold-out dev=200 --out data/{name}",
    )
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="[SPLIT=]FILE_OR_HUB_ID[@HUB_SPLIT]",
        help="what is read; may be repeated, once a split",
    )
    parser.add_argument("--config", default=None, help="configuration of a data set on the hub")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of SPLIT.jsonl, .parquet, .dropped.jsonl and .card.json"
    )
    parser.add_argument("--split", default="train", help="name of the split where --input has none (default train)")
    parser.add_argument("--data-source", default=name, help=f"name under which verl reports its metrics (default {name})")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="FlashRAG questions that train must not ask")
    parser.add_argument(
        "--near", type=float, default=0.7, help="similarity of word pairs from which a question is excluded; 0: equal only"
    )
    parser.add_argument("--sample", type=int, default=None, help="number of questions to draw")
    parser.add_argument("--hold-out", default=None, metavar="NAME=N", help="cut a split off train")
    parser.add_argument("--seed", type=int, default=1, help="of --sample and --hold-out")
    parser.add_argument("--max-question-words", type=int, default=None, help="leave out longer questions")
    parser.add_argument("--max-answer-words", type=int, default=None, help="leave out questions with a longer answer")
    parser.add_argument("--no-yes-no", action="store_true", help="leave out questions answered by yes or no")
    parser.add_argument("--strict", action="store_true", help="stop at the first malformed row")
    parser.add_argument("--contexts", action="store_true", help=f"write the rows' paragraphs as a corpus, too: {PASSAGES}")
    if name == "2wikimultihopqa":
        parser.add_argument("--aliases", type=Path, default=None, help="id_aliases.json")
    parser.set_defaults(run=run_dataset)


def run_dataset(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Convert every split, then write them and return the cards; malformed rows are reported on standard error.

    Raises:
        ConfigError: contexts of a data set that has none.
        DataError: a split is given twice; a row is malformed, and `strict`; no question is left.
    """
    inputs = dict(_inputs(options.input, options.split))
    if len(inputs) < len(options.input):
        raise DataError(f"a split is given twice: {options.input}; write --input train=A --input dev=B")
    cards: list[dict[str, Any]] = []
    splits = _with_passages(options, inputs, cards) if options.contexts else list(_splits(options, inputs))
    for split, done, card in splits:
        cards.append(write_split(options.out, split, done, card))
        malformed = [drop for drop in done.dropped if drop["reason"] == MALFORMED]
        for drop in malformed[:SHOWN]:
            print(f"data_preprocess: {drop['where']}: malformed: {drop['detail']}", file=sys.stderr)
        if len(malformed) > SHOWN:
            print(f"data_preprocess: … {len(malformed)} in all: {options.out / split}.dropped.jsonl", file=sys.stderr)
        if split == "train" and len(done.questions) < FEW:
            print(
                f"data_preprocess: train has only {len(done.questions)} questions; a training needs hundreds", file=sys.stderr
            )
    return cards


def _with_passages(
    options: argparse.Namespace, inputs: dict[str, tuple[str, str]], cards: list[dict[str, Any]]
) -> list[tuple[str, Conversion, dict[str, Any]]]:
    """Return what `_splits` yields, its questions with the ids of the passages that support them; write the passages and add their card."""
    if not DATASETS[options.command].paragraphs:
        having = ", ".join(name for name, dataset in DATASETS.items() if dataset.paragraphs)
        raise ConfigError(f"the files of {options.command} carry no paragraphs; --contexts is for {having}")
    made: list[Contexts] = []
    splits: list[tuple[str, Conversion, dict[str, Any]]] = []

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            made.append(Contexts(file, options.command))
            splits.extend(_splits(options, inputs, made[0]))
        if not made[0].titles:
            raise DataError(f"no row of {', '.join(options.input)} carries a paragraph with a text: leave --contexts out")

    write_atomically(options.out / PASSAGES, write)
    for _, done, card in splits:
        card["supporting"] = made[0].resolve(done.questions)
    cards.append(made[0].card(options.out, [source_of(source, options.config, split) for source, split in inputs.values()]))
    return splits


def _splits(
    options: argparse.Namespace, inputs: dict[str, tuple[str, str]], contexts: Contexts | None = None
) -> Iterator[tuple[str, Conversion, dict[str, Any]]]:
    """Yield (split, conversion, beginning of its card), train last: it must not ask what the others ask.

    Limits, exclusion, sub-sample and hold-out concern train, or the only split there is: beside it, an evaluation set stays whole.
    """
    limits = Limits(options.max_question_words, options.max_answer_words, not options.no_yes_no)
    aliases = read_aliases(options.aliases) if getattr(options, "aliases", None) else None
    excluded = [row["question"] for path in options.exclude for row in read_questions(path)]
    for split in sorted(inputs, key=lambda name: name == "train"):
        source, hub_split = inputs[split]
        rows = read_rows(source, options.config, hub_split, DATASETS[options.command].columns)
        card = {"dataset": options.command, "source": source_of(source, options.config, hub_split)}
        shaped = split == "train" or len(inputs) == 1
        done = convert(
            options.command,
            rows,
            split,
            limits=limits if shaped else Limits(),
            strict=options.strict,
            aliases=aliases,
            data_source=options.data_source,
            unique=split not in EVALUATION,
            contexts=contexts,
        )
        if not shaped:
            excluded += [question.question for question in done.questions]
            yield split, done, card
            continue
        if excluded:
            without_overlap(done, Overlap(excluded, options.near or None))
        card["options"] = {
            "limits": asdict(limits),
            "excluded_questions": len(excluded),
            "near": options.near,
            "sample": options.sample,
            "hold_out": options.hold_out,
            "seed": options.seed,
        }
        if options.hold_out:
            name, _, count = options.hold_out.partition("=")
            if not count.isdigit() or not name or name in inputs:
                raise DataError(f"--hold-out takes a new split and a number, for example dev=500; got {options.hold_out!r}")
            held = sample(done, int(count), options.seed)
            held.dropped = []  # they are listed with train
            yield name, held, dict(card)  # a copy: train's card is changed below
        if options.sample is not None:
            done = sample(done, options.sample, options.seed)
        yield split, done, card


def _inputs(given: list[str], default: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (split, (file or hub id, split on the hub)); a file's name may contain "=" and "@" if the file is there."""
    for text in given:
        split, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            split, source = default, text
        identifier, at, hub_split = source.rpartition("@")
        named = bool(at) and not Path(source).exists()
        yield split, (identifier, hub_split) if named else (source, HUB_SPLITS.get(split, split))
