"""``python benchmarks/engine.py --run runs/wikipedia``: the seconds of a training's rollouts, against vLLM alone after the same prompts.

Of some steps of a run by `python -m experiment`, every turn is generated again, as many tokens after the same ids: by vLLM in this
process, which is given a trajectory's next turn as soon as the one before is done. There is no Ray, no search, no parsing, no log. The
ratio says what all that costs. Run it on the machine of the run, with nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.codec import HFCodec, load_codec
from research_rl.cpu import CPU_ENVIRONMENT, fast_dtype, restart_with
from research_rl.methods import load_method
from research_rl.methods.base import Method
from research_rl.training.trajectory_log import read

ENGINE = {
    "dtype": fast_dtype(),
    "max_model_len": 896,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 1024,
    "block_size": 32,
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "logprobs_mode": "processed_logprobs",
}


def turns(record: Mapping[str, Any], method: Method, codec: HFCodec) -> Iterator[tuple[list[int], int]]:
    """Yield, of every turn of a trajectory, the ids before it and how many were sampled."""
    ids = codec.encode_prompt(method.prompt(record["question"]), method.prefill)
    for turn in record["turns"]:
        sampled = codec.encode(turn["text"])
        yield list(ids), max(1, len(sampled))
        ids += sampled + codec.encode(turn["observation"])


def generate(engine: Any, trajectories: list[list[tuple[list[int], int]]], temperature: float) -> float:
    """Generate all turns, each trajectory's one after the other; return the seconds."""
    from vllm import SamplingParams

    at = dict.fromkeys(map(str, range(len(trajectories))), 0)

    def ask(name: str) -> None:
        ids, count = trajectories[int(name)][at[name]]
        sampling = SamplingParams(temperature=temperature, max_tokens=count, min_tokens=count, ignore_eos=True, logprobs=0)
        engine.add_request(f"{name}/{at[name]}", {"prompt_token_ids": ids}, sampling)

    engine.reset_prefix_cache()  # as after an update of the weights
    started = time.perf_counter()
    for name in at:
        ask(name)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                name = output.request_id.partition("/")[0]
                at[name] += 1
                if at[name] < len(trajectories[int(name)]):
                    ask(name)
    return time.perf_counter() - started


def main() -> None:
    """Print seconds of both and their ratio, a line per step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="directory of `python -m experiment`, with its training done")
    parser.add_argument("--steps", type=int, nargs="+", default=None, help="their numbers (default: the last three)")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--engine", type=json.loads, default={}, help=f"JSON, changes {json.dumps(ENGINE)}")
    options = parser.parse_args()
    from vllm import LLM

    summary = json.loads((options.run / "summary.json").read_text(encoding="utf-8"))
    settings = json.loads((options.run / "settings.json").read_text(encoding="utf-8"))
    chosen = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("method_options.")}
    model = summary["models"]["trained"]["path"]
    method, codec = load_method(settings["method"], **chosen), load_codec(model, bos=None)
    by_step: dict[int, list[Any]] = defaultdict(list)
    for record in read(options.run / "train" / "trajectories"):
        if not record["validate"]:
            by_step[record["step"]].append(list(turns(record, method, codec)))
    seconds = {row["number"]: row["gen"] for row in summary["step_seconds"]}
    engine = LLM(model=model, enable_prefix_caching=True, **{**ENGINE, **options.engine}).llm_engine
    steps = options.steps or sorted(seconds)[-3:]
    generate(engine, by_step[steps[0]], options.temperature)  # prepares kernels
    for step in steps:
        alone = generate(engine, by_step[step], options.temperature)
        tokens = sum(count for one in by_step[step] for _, count in one)
        print(
            json.dumps(
                {
                    "step": step,
                    "rollouts": len(by_step[step]),
                    "sampled_tokens": tokens,
                    "training_s": seconds[step],
                    "vllm_alone_s": round(alone, 2),
                    "ratio": round(alone / seconds[step], 3),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    restart_with(CPU_ENVIRONMENT)
    sys.exit(main())
