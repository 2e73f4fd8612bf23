"""What the figures of a run's health cost: milliseconds per step. `python benchmarks/health.py [--rollouts 64] [--searches 4]`.

The rollouts are made up, of real lengths: `--searches` observations of three passages of 100 words each, and as many turns.
"""

from __future__ import annotations

import argparse
import random
import time

from research_rl.health import RolloutHealth, rollout_health, step_health
from research_rl.methods.base import load_method
from research_rl.types import Answer, Passage, Search, StopReason, Trajectory, Turn

WORDS = ["tarn", "venn", "orla", "river", "was", "born", "in", "the", "of", "a", "film", "county", "1987", "and"]


def made_up(random_: random.Random, searches: int) -> Trajectory:
    """Return a rollout with some searches."""

    def words(count: int) -> str:
        return " ".join(random_.choices(WORDS, k=count))

    turns = []
    for _ in range(searches):
        query = words(8)
        text = f"<think>{words(60)}</think><search>{query}</search>"
        turns.append(Turn(text, Search(query), f"<result>{words(300)}</result>", (Passage("p", ""),)))
    turns.append(Turn(f"<think>{words(60)}</think><answer>\\boxed{{{words(3)}}}</answer>", Answer(words(3))))
    mask = ([1] * 90 + [0] * 400) * searches + [1] * 90
    return Trajectory("q", [], mask, mask, [-0.5] * len(mask), tuple(turns), StopReason.ANSWERED, True, 9.0, 0.1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--searches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    method, seeded = load_method("research"), random.Random(1)
    rollouts = [made_up(seeded, options.searches) for _ in range(options.rollouts)]
    each, together = [], []
    for _ in range(options.repeats):
        started = time.perf_counter()
        told: list[RolloutHealth] = [
            rollout_health(method, one, ["Orla Venn", "Venn"], 1.0, str(row // 8), {"hops": 2})
            for row, one in enumerate(rollouts)
        ]
        between = time.perf_counter()
        step_health(told)
        each.append(between - started)
        together.append(time.perf_counter() - between)
    print(f"{options.rollouts} rollouts with {options.searches} searches each, best of {options.repeats}:")
    print(f"  figures of the rollouts  {min(each) * 1000:8.2f} ms a step (in the rollout workers)")
    print(f"  figures of the step      {min(together) * 1000:8.2f} ms a step (in the trainer)")


if __name__ == "__main__":
    main()
