"""What watching a run costs: milliseconds per step, and the share of a step. `python benchmarks/health.py [--rollouts 64] [--run RUN]`.

The rollouts are made up, of real lengths: `--searches` observations of three passages of 100 words each, and as many turns.
With `--run` their numbers are those of a run, and the cost is also told as a share of its steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from research_rl.codec import load_codec, turn_tokens
from research_rl.health import RolloutHealth, rollout_health, step_health
from research_rl.methods import load_method
from research_rl.training.health import Health, Watch
from research_rl.training.metric_files import logged
from research_rl.training.rollback import FIGURES, append
from research_rl.training.trajectory_log import TrajectoryLog, read
from research_rl.types import Answer, Passage, Search, StopReason, Trajectory, Turn
from research_rl.verl_plugin.policy_loss import kept_logprob_change

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "quickstart" / "start_model" / "weights"
RULES = ROOT / "research_rl" / "config" / "health.yaml"
WORDS = ["tarn", "venn", "orla", "river", "was", "born", "in", "the", "of", "a", "film", "county", "1987", "and"]
WRITTEN, OBSERVED = 90, 400  # tokens of a turn, and of an observation
OPTIONAL = "off by default: trajectory_logprobs"


def made_up(random_: random.Random, searches: int) -> Trajectory:
    """Return a rollout with some searches."""

    def words(count: int) -> str:
        return " ".join(random_.choices(WORDS, k=count))

    turns = []
    for _ in range(searches):
        query = words(8)
        text = f"<think>{words(60)}</think><search>{query}</search>"
        passages = tuple(Passage(f"p{number}", words(100)) for number in range(3))
        turns.append(Turn(text, Search(query), f"<result>{words(300)}</result>", passages))
    turns.append(Turn(f"<think>{words(60)}</think><answer>\\boxed{{{words(3)}}}</answer>", Answer(words(3))))
    mask = ([1] * WRITTEN + [0] * OBSERVED) * searches + [1] * WRITTEN
    return Trajectory("q", [], [7] * len(mask), mask, [-0.5] * len(mask), tuple(turns), StopReason.ANSWERED, True, 9.0, 0.1)


def shape_of(run: Path) -> tuple[int, int, float]:
    """Return rollouts and (rounded up) searches per rollout of a run, and the median of its seconds per step without a validation.

    Raises:
        SystemExit: the directory holds no steps.
    """
    steps = [data for row in logged(run) if "timing_s/step" in (data := row["data"])]
    if not steps:
        raise SystemExit(f"{run} holds no metrics-*.jsonl with steps; --run expects the directory of a training")
    seconds = statistics.median(step["timing_s/step"] - step.get("timing_s/testing", 0.0) for step in steps)
    turns = statistics.mean(step["health/searches"] for step in steps)
    trained = [record for record in read(next(run.glob("**/trajectories"))) if not record["validate"]]
    return round(len(trained) / len({record["step"] for record in trained})), -int(-turns // 1), seconds


def parts_of(rollouts: list[Trajectory], directory: Path) -> dict[str, Callable[[], Any]]:
    """Return what is done for these rollouts of one step, by name."""
    method, codec = load_method("research"), load_codec(str(MODEL))
    told: list[RolloutHealth] = []
    log = TrajectoryLog(directory / "trajectories")
    watch = Watch(Health.from_mapping(yaml.safe_load(RULES.read_text())).rules)
    mask = torch.tensor([one.response_mask for one in rollouts])
    old = torch.full(mask.shape, -0.5)
    new, advantages = old + 0.01 * torch.randn(mask.shape), torch.randn(len(mask), 1).expand(mask.shape)

    def figures() -> None:
        told[:] = [
            rollout_health(method, one, ["Orla Venn", "Venn"], 1.0, str(row // 8), {"hops": 2})
            for row, one in enumerate(rollouts)
        ]

    def write() -> None:
        for row, one in enumerate(rollouts):
            log.write({"validate": False, "step": 1, "uid": str(row // 8), "split": "train", "metrics": {}, **one.to_json()})

    def judge() -> None:
        metrics = {f"health/{name}": value for name, value in step_health(told).items()}
        watch.see(1, metrics)
        append(directory / FIGURES, {"step": 1, "metrics": watch.watched(metrics)})

    return {
        "rollout workers: figures of the rollouts": figures,
        "rollout workers: trajectories written": write,
        "trainer: figures of the step, rules, log": judge,
        "trainer: likelihood of the kept turns": lambda: kept_logprob_change(old, new, advantages, mask),
        OPTIONAL: lambda: [turn_tokens(codec, one) for one in rollouts],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts per step")
    parser.add_argument("--searches", type=int, default=4, help="searches per rollout")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--run", type=Path, help="directory of a training, which gives rollouts, searches and seconds per step")
    options = parser.parse_args()
    seconds = None
    if options.run:
        options.rollouts, options.searches, seconds = shape_of(options.run)
    seeded, total = random.Random(1), 0.0
    rollouts = [made_up(seeded, options.searches) for _ in range(options.rollouts)]
    print(f"{options.rollouts} rollouts with {options.searches} searches each, median of {options.repeats}:")
    with tempfile.TemporaryDirectory() as directory:
        for name, part in parts_of(rollouts, Path(directory)).items():
            times = []
            for _ in range(options.repeats):
                started = time.perf_counter()
                part()
                times.append(time.perf_counter() - started)
            total += statistics.median(times) if name != OPTIONAL else 0.0
            print(f"  {name:42}{statistics.median(times) * 1000:8.2f} ms a step")
    share = f", {total / seconds:.2%} of a step of {seconds:.1f} s (median) of {options.run}" if seconds else ""
    print(f"  {'together, as shipped':42}{total * 1000:8.2f} ms{share}")


if __name__ == "__main__":
    sys.exit(main())
