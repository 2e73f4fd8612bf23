"""What a training of some size asks of each part, by arithmetic: `python -m docs.tools.scale --gpus 64 --rollouts 1e6`.

docs/howto/scale.md shows the table for 1,000 GPUs, and says where each constant was measured. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from research_rl.files import write_text
from research_rl.training.flops import H100, H100_USED, Step

PAGE = Path(__file__).parents[1] / "howto" / "scale.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
DAY = 86_400  # seconds
# measured (docs/howto/scale.md says where)
TRAJECTORY_FIXED, TRAJECTORY_TOKEN = 580, 4.4  # bytes of a trajectory's record, and of each of its tokens
CHECKPOINT = 16.0  # bytes a parameter
LOG_STEP = 38_800  # bytes of train.log a step
QUERIES_CORE = 266  # a second and core: BM25, 21 million passages, over HTTP, clients included
CLIENT = 0.23e-3  # seconds of a core that a query takes in the training client, gathered
PARSED = 149e6  # bytes of trajectories that one core reads a second
# read from verl 0.9.1's source: bytes a token
DRIVER_MOVED, DRIVER_HELD, STORED = 112, 56, 72
# assumed
ONE_PROCESS = 0.5e9  # bytes a second that one Python process takes from TransferQueue and gives back
PASSAGE, PASSAGES = 600, 5  # bytes, and how many a query
NODE = 8  # GPUs


@dataclass(frozen=True)
class Size:
    """What is asked for. `tokens`: the mean of prompt, response and passages together; `batch`: rollouts a step."""

    gpus: int = 1_000
    rollouts: float = 1e8  # a day
    tokens: int = 8_192
    searches: float = 2.11  # a rollout
    parameters: float = 7.6e9
    batch: int = 65_536
    save_every: int = 20  # steps
    generating: float = 0.42  # share of a step in which rollouts are made, and searches asked


@dataclass(frozen=True)
class Row:
    """A part of the table: what it is, how much, and how many times what there is of it is asked for (None: no limit is known)."""

    part: str
    amount: str
    load: float | None = None


def reckon(size: Size) -> list[Row]:
    """Return the table's rows; each `load` above 1 is a bottleneck."""
    rate = size.rollouts / DAY  # rollouts a second
    step = size.batch / rate  # seconds
    gpus = Step(size.batch, size.tokens, size.parameters).flops() / step / H100 / H100_USED
    record = TRAJECTORY_FIXED + TRAJECTORY_TOKEN * size.tokens
    queries = rate * size.searches / size.generating  # a second, while rollouts are made
    moved = size.batch * size.tokens * DRIVER_MOVED
    checkpoint = size.parameters * CHECKPOINT
    return [
        Row("a step", f"{step:,.1f} s, {DAY / step:,.0f} a day"),
        Row("GPUs", f"{gpus:,.0f} of {size.gpus:,}", gpus / size.gpus),
        Row("driver, bytes a step", f"{moved / 1e9:,.1f} GB, {moved / step / 1e9:,.2f} GB/s", moved / step / ONE_PROCESS),
        Row("driver, memory", f"{size.batch * size.tokens * DRIVER_HELD / 1e9:,.1f} GB"),
        Row("TransferQueue, memory", f"{size.batch * size.tokens * STORED / 1e9:,.1f} GB"),
        Row("TransferQueue, storage units", f"{max(8, 2 * ceil(size.gpus / NODE)):,} (8 by default)"),
        Row("trajectories, plain", f"{record:,.0f} bytes each, {record * size.rollouts / 1e12:,.2f} TB a day"),
        Row(
            "trajectories, read by one process",
            f"{record * size.rollouts / PARSED / 3600:,.2f} h a day",
            record * rate / PARSED,
        ),
        Row("searches", f"{queries:,.0f} a second while rollouts are made, {size.rollouts * size.searches:,.0f} a day"),
        Row("cores of the service (BM25), of its clients", f"{ceil(queries / QUERIES_CORE):,}, {ceil(queries * CLIENT):,}"),
        Row("answers of the service", f"{queries * PASSAGE * PASSAGES / 1e6:,.1f} MB/s"),
        Row(
            "checkpoints", f"{checkpoint / 1e9:,.0f} GB each, {checkpoint * DAY / step / size.save_every / 1e12:,.2f} TB a day"
        ),
        Row("files of a checkpoint", f"{3 * size.gpus:,}"),
        Row("train.log", f"{LOG_STEP * DAY / step / 1e6:,.1f} MB a day"),
    ]


def table(size: Size) -> str:
    """Return the rows as a Markdown table, with the load where a limit is known."""
    lines = ["| part | amount | of what there is |", "|---|---|---|"]
    lines += [f"| {row.part} | {row.amount} | {'' if row.load is None else f'{row.load:.2f}'} |" for row in reckon(size)]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return docs/howto/scale.md with the table that holds now."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table(Size()) + END + rest.partition(END)[2]


def main(arguments: list[str] | None = None) -> None:
    """Print the table for the size asked for, or write the page's."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.tools.scale", description="What a training of some size asks of each part."
    )
    texts = {
        "gpus": "GPUs",
        "rollouts": "rollouts a day",
        "tokens": "tokens a rollout, mean",
        "searches": "searches a rollout",
        "parameters": "parameters of the model",
        "batch": "rollouts a step",
        "save_every": "steps between checkpoints",
        "generating": "share of a step in which rollouts are made",
    }
    default = Size()
    for name, text in texts.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} (default: {value:g})")
    parser.add_argument("--write", action="store_true", help="put the table of the defaults into docs/howto/scale.md")
    asked = vars(parser.parse_args(arguments))
    if asked.pop("write"):
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
        return
    for name, value in asked.items():
        most = 1 if name == "generating" else float("inf")
        if not 0 < value <= most or value == float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0{' and at most 1' if most == 1 else ''}; got {value:g}")
    sys.stdout.write(table(Size(**asked)))


if __name__ == "__main__":
    main()
