"""``python -m data_preprocess``: make data sets and corpora for training, serving and evaluation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_preprocess.answerable import add_answerable
from data_preprocess.corpus.cutting import UNITS, Cutting
from data_preprocess.coverage_command import add_coverage
from data_preprocess.dataset_commands import add_dataset
from data_preprocess.datasets import DATASETS
from data_preprocess.demonstrations.command import add_demonstrations
from data_preprocess.mixing import add_mix
from data_preprocess.sampling_commands import add_cold_start, add_select
from data_preprocess.world import Split
from data_preprocess.world.write import write_world
from research_rl.command_line import Parser, show
from research_rl.errors import DataError, GenerationError, MissingExtraError, missing_extra

CORPUS_FORMATS = ("kilt", "hotpotqa", "wikiextractor", "dpr", "flashrag")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        cards = options.run(options)
    except (DataError, MissingExtraError, GenerationError, ValueError, OSError) as error:
        print(f"data_preprocess: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"data_preprocess: {missing_extra(error.name or 'a dependency', 'data')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data_preprocess: interrupted; the same command goes on where that is possible", file=sys.stderr)
        return 130
    for card in cards if isinstance(cards, list) else [cards]:
        show(card if isinstance(card, str) else json.dumps(card, ensure_ascii=False))
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="python -m data_preprocess",
        description=__doc__,
        example="python -m data_preprocess hotpotqa --input hotpot_train_v1.1.json --hold-out dev=200 --out data/hotpotqa",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in DATASETS:
        add_dataset(commands, name)
    add_mix(commands)
    add_select(commands)
    add_cold_start(commands)
    add_demonstrations(commands)
    add_corpus(commands)
    add_coverage(commands)
    add_answerable(commands)
    add_world(commands)
    return parser


def add_world(commands: Any) -> None:
    """Add the fictional world."""
    world = commands.add_parser(
        "world",
        help="a fictional world: corpus, questions, and the control without evidence",
        example="python -m data_preprocess world --out world --scale 0.5",
    )
    world.add_argument("--out", type=Path, required=True, help="directory of the corpora and the questions")
    world.add_argument("--seed", type=int, default=1, help="of the whole world")
    world.add_argument(
        "--scale", type=float, default=1.0, help="size of the corpus; 1.0 is 2,100 passages, or 5,550 with --documents"
    )
    for split, count in (("train", 2_000), ("dev", 60), ("test", 200)):
        world.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} questions (default {count})")
    world.add_argument(
        "--documents", action="store_true", help="documents of several passages, whose facts are seen only by opening them"
    )
    world.set_defaults(run=run_world)


def run_world(options: argparse.Namespace) -> dict[str, Any]:
    """Write a world and return its card."""
    counts: dict[Split, int] = {"train": options.train, "dev": options.dev, "test": options.test}
    return write_world(options.out, options.seed, options.scale, counts, options.documents)


def add_corpus(commands: Any) -> None:
    """Add the passages of a corpus."""
    corpus = commands.add_parser(
        "corpus",
        help="a dump to passages: KILT, HotpotQA's abstracts, wikiextractor, DPR, FlashRAG",
        example="python -m data_preprocess corpus --input psgs_w100.tsv.gz --format dpr --out corpus.jsonl",
    )
    corpus.add_argument("--input", type=Path, required=True, help="file (.gz and .bz2 too), tar archive, or folder")
    corpus.add_argument("--format", required=True, choices=CORPUS_FORMATS, help="whose dump")
    corpus.add_argument("--out", type=Path, required=True, help="the passages: JSON lines of id and contents")
    corpus.add_argument(
        "--by", default=None, choices=UNITS, help="unit of a passage (default words; keep for dpr and flashrag)"
    )
    corpus.add_argument("--size", type=int, default=100, help="units of a passage (default 100)")
    corpus.add_argument("--overlap", type=int, default=0, help="units that neighbouring passages share")
    corpus.add_argument("--tokenizer", default="", help="directory or hub id, for --by tokens")
    corpus.add_argument("--language", default="en", help="for --by sentences")
    corpus.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    corpus.add_argument("--strict", action="store_true", help="stop at the first malformed line")
    corpus.add_argument("--fresh", action="store_true", help="begin again")
    corpus.set_defaults(run=run_corpus)


def run_corpus(options: argparse.Namespace) -> dict[str, Any]:
    """Make passages and return the manifest."""
    from data_preprocess.corpus.build import FORMATS, build  # needs its extra

    unit = options.by or ("words" if FORMATS[options.format].cut else "keep")
    cutting = Cutting(unit, options.size, options.overlap, options.tokenizer, options.language)
    return build(options.input, options.out, options.format, cutting, options.workers, options.strict, options.fresh)


if __name__ == "__main__":
    sys.exit(main())
