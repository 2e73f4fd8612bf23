"""What native tool calls cost a rollout in rendering and parsing, per turn, and as a share of a training's step.

    python benchmarks/tool_calls.py --model MODEL [--template research_rl/tools/chatml.jinja] [--run runs/wikipedia-tool-calls]

MODEL is a folder or hub id. Every turn: the policy's message is parsed; the results of its call, of `--passages` passages of 100 words, are
neutralised, rendered by the chat template and encoded. `--run` is a training's directory: seconds of a step and turns in it, on average.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

from rag_serving.indexing.synthetic import synthetic
from research_rl.codec import HFCodec
from research_rl.methods import load_method
from research_rl.rollout import silence
from research_rl.training.metric_files import logged
from research_rl.training.trajectory_log import read
from research_rl.types import Passage


def milliseconds(action: Any, rounds: int) -> float:
    """Return the median milliseconds of a call."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def of_run(run: Path) -> tuple[float, float]:
    """Return a training's mean seconds of a step, and its mean number of turns in one."""
    steps = [row["data"]["timing_s/step"] for row in logged(run) if "timing_s/step" in row["data"]]
    counts: dict[int, int] = {}
    for record in read(run / "trajectories"):
        if not record["validate"]:
            counts[record["step"]] = counts.get(record["step"], 0) + len(record["turns"])
    return statistics.mean(steps), statistics.mean(counts.values())


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--template", type=Path, help="a chat template in the place of the model's own")
    parser.add_argument("--format", default="hermes")
    parser.add_argument("--passages", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.template:
        tokenizer.chat_template = options.template.read_text(encoding="utf-8")
    codec, method = HFCodec(tokenizer), load_method("tool_calls", format=options.format)
    message = method.write_search("I look up where she was born.", "birthplace of Marie Curie")
    passages = [Passage(row["id"], row["contents"]) for row in islice(synthetic(100), options.passages)]

    def observed() -> None:
        silent = [[Passage(one.id, silence(one.contents, method, codec)) for one in passages]]
        codec.encode(codec.tool_results([method.render(silent)]))

    told = {
        "prompt_ms": milliseconds(lambda: codec.encode_prompt(method.prompt("Where was Marie Curie born?")), options.rounds),
        "parse_ms": milliseconds(lambda: method.parse(message), options.rounds),
        "render_ms": milliseconds(lambda: codec.tool_results(["Warsaw"]), options.rounds),
        "observation_ms": milliseconds(observed, options.rounds),
    }
    if options.run:
        seconds, turns = of_run(options.run)
        told |= {"step_s": seconds, "turns": turns}
        told["share_of_step"] = turns * (told["parse_ms"] + told["render_ms"]) / 1000 / seconds
    print(json.dumps({name: round(value, 6) for name, value in told.items()}))


if __name__ == "__main__":
    main()
