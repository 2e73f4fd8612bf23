"""The viewer over many trajectories: ``python benchmarks/viewer.py --out /tmp/viewer``; prints milliseconds and the memory's peak.

The trajectories are made from fixed seeds (JSON lines, 60 steps, four rollouts of a question). Times are of the application itself: a
request with its answer as JSON, the median and the longest of five. Nothing is drawn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from research_rl.web.viewer_app import create_viewer
from research_rl.web.viewer_cache import Cache

STEPS, ROLLOUTS, PART = 60, 4, 20_000
REQUESTS = {
    "first page": ("list", {}),
    "last step first": ("list", {"order": "last"}),
    "highest reward first": ("list", {"order": "best"}),
    "one step": ("list", {"step": 30}),
    "reward at most 0.2": ("list", {"max": 0.2}),
    "rule broken": ("list", {"rule": "not well formed"}),
    "validation, wrong, worst first": ("list", {"validate": 1, "em": 0, "order": "worst"}),
    "a frequent word": ("list", {"q": "the"}),
    "a rare word": ("list", {"q": "rare7"}),
    "a phrase of the observations": ("list", {"q": 'observation:"w1 w2"'}),
    "a prefix and two filters": ("list", {"q": "w1", "stop_reason": "answered", "min": 0.5}),
    "the last page": ("list", {"offset": 10**9}),
    "values of the filters": ("facets", {}),
    "state of the run": ("runs", {}),
}


def trajectories(count: int, seed: int = 1) -> Any:
    """Yield records of a training, about 2.3 KB each."""
    draw = random.Random(seed)
    vocabulary = ["the", *(f"w{number}" for number in range(3000))]
    summed = list(itertools.accumulate(1 / (1 + place) for place in range(len(vocabulary))))
    chunks = [" ".join(draw.choices(vocabulary, cum_weights=summed, k=5)) for _ in range(20_000)]  # five words each: draws cost

    def words(many: int) -> str:
        return " ".join(draw.choices(chunks, k=many // 5))

    questions = [words(10) for _ in range(max(1, count // 40))]
    for number in range(count):
        if number % ROLLOUTS == 0:
            question = draw.choice(questions)
        em, broken = float(draw.random() < 0.4), draw.random() < 0.1
        rare = f" rare{number % 1000}" if number % 10 == 0 else ""
        invalid = {"kind": "Invalid", "reason": "no <answer>"}
        turns = [
            {
                "text": words(30) + rare,
                "action": {"kind": "Search", "query": words(5)},
                "observation": words(220),
                "passages": [{"id": f"p{draw.randrange(10**6)}", "score": draw.random()} for _ in range(3)],
            },
            {
                "text": words(20),
                "action": invalid if broken else {"kind": "Answer", "text": "w1"},
                "observation": "",
                "passages": [],
            },
        ]
        metrics = {
            "score": em or draw.choice((0.0, 0.1)),
            "em": em,
            "f1": em,
            "searches": 1.0,
            "well_formed": float(not broken),
        }
        yield {
            "attempt": 1.0,
            "time": float(number),
            "step": number * STEPS // count,
            "validate": number % 10 == 3,
            "split": "train",
            "type": draw.choice(("bridge", "comparison")),
            "stage": "",
            "uid": f"u{number // ROLLOUTS}",
            "data_source": draw.choice(("nq", "hotpotqa")),
            "question": question,
            "golden_answers": ["w1"],
            "answer": "w1",
            "stop_reason": draw.choice(("answered", "answered", "max_tokens")),
            "ended_with_eos": True,
            "metrics": metrics,
            "turns": turns,
        }


def write(run: Path, count: int) -> None:
    """Write a run's trajectories, unless they are there."""
    directory = run / "trajectories"
    directory.mkdir(parents=True, exist_ok=True)
    if (done := directory / f".{count}").exists():
        return
    for path in directory.glob("*.jsonl"):
        path.unlink()
    made = trajectories(count)
    for part in range(-(-count // PART)):
        with (directory / f"1-made-1-{part:05d}.jsonl").open("w") as file:
            for _, record in zip(range(PART), made, strict=False):
                file.write(json.dumps(record) + "\n")
    done.touch()


def timed(work: Callable[[], Any], times: int = 5) -> str:
    """Return the median and the longest time of some calls, as text."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - started))
    return f"{statistics.median(taken):8.0f} ms  (longest {max(taken):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trajectories", type=int, default=100_000)
    options = parser.parse_args()
    write(options.out / "run", options.trajectories)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for file in (options.out / "cache").glob("*.sqlite*"):
        file.unlink()
    cache = Cache(options.out / "run", options.out / "cache")
    client = TestClient(create_viewer([cache]))
    started = time.perf_counter()
    cache.fill()
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in (options.out / "cache").glob("*.sqlite*"))
    print(
        f"{'read for the first time':<34}{1000 * seconds:8.0f} ms  ({options.trajectories / seconds:.0f} a second, {size / 2**20:.0f} MiB)"
    )
    opened = timed(lambda: Cache(options.out / "run", options.out / "cache"))
    print(f"{'opened again':<34}{opened}")
    print(f"{'looked whether there is more':<34}{timed(cache.fill)}")
    for name, (path, parameters) in REQUESTS.items():
        found = client.get(f"/api/{path}", params=parameters).json()
        told = f", {found['total']} found" if path == "list" else ""
        print(f"{name:<34}{timed(lambda path=path, given=parameters: client.get(f'/api/{path}', params=given))}{told}")
    key = client.get("/api/list").json()["rows"][0]["key"]
    print(f"{'one trajectory':<34}{timed(lambda: client.get('/api/trajectory', params={'key': key}))}")
    print(f"{'the same question elsewhere':<34}{timed(lambda: client.get('/api/same', params={'key': key}))}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory: {peak / 1024:.0f} MiB at most, {before / 1024:.0f} before reading")


if __name__ == "__main__":
    main()
