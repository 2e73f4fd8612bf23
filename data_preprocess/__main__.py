"""``python -m data_preprocess``: make data sets for training, serving and evaluation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from data_preprocess.formats import read_questions, write_verl_parquet
from data_preprocess.world import Split
from data_preprocess.world.write import write_world
from research_rl.errors import DataError, MissingExtraError


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
    options = parser.parse_args(arguments)
    try:
        if options.command == "world":
            counts: dict[Split, int] = {"train": options.train, "dev": options.dev, "test": options.test}
            print(json.dumps(write_world(options.out, options.seed, options.scale, counts)))
        else:
            rows = list(read_questions(options.input))
            written = write_verl_parquet(options.out, rows, options.data_source, options.split)
            print(f"{options.out}: {written} questions")
    except (DataError, MissingExtraError, ValueError, OSError) as error:
        print(f"data_preprocess: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
