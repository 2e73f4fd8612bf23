"""The evaluator's throughput against vLLM alone, on a server that runs: ratio of the times for the same generations.

    python benchmarks/evaluator.py --model M --tokenizer DIR --questions q.jsonl --retrieval-url URL [--concurrency 64]

- evaluator: every question rolled out, with search, 64 in flight, as `python -m evaluation run` does it.
- alone: the same calls (token ids in, as many tokens out as then) sent to the server without rollout or search, 64 in flight.

Both are run `--repeat` times in turn after one run of each to warm up (prefix cache, connections); the medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from research_rl.inference.sampling import sample
from research_rl.inference.served import Served, add_model, add_questions, open_served
from research_rl.questions import read_questions
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import Generation

Call = tuple[list[int], int]  # prompt ids, tokens sampled


async def evaluator(served: Served, questions: list[dict], url: str, concurrency: int) -> tuple[float, list[Call]]:
    """Return the seconds of one evaluation, and the generations it took."""
    calls: list[Call] = []

    async def generate(ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
        found = await served.server.generate(ids, most, stop)
        calls.append((ids, len(found.token_ids)))
        return found

    with tempfile.TemporaryDirectory() as folder:
        async with RetrievalClient(RetrievalSettings(url)) as client:
            arguments = (
                served.method,
                served.codec,
                questions,
                1,
                served.budget,
                generate,
                client.search,
                Path(folder, "log.jsonl"),
            )
            started = time.monotonic()
            await sample(
                *arguments,
                lambda trajectory, row: {"searches": len(trajectory.searches)},
                concurrency,
                served_context=served.server.context,
            )
            return time.monotonic() - started, calls


async def alone(url: str, model: str, calls: list[Call], concurrency: int) -> float:
    """Return the seconds that the server takes for the same generations."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(
        base_url=url.rstrip("/"), timeout=600, limits=httpx.Limits(max_connections=concurrency)
    ) as http:

        async def one(ids: list[int], count: int) -> None:
            body = {
                "model": model,
                "prompt": ids,
                "max_tokens": count,
                "min_tokens": count,
                "ignore_eos": True,
                "temperature": 0.0,
            }
            async with gate:
                (await http.post("/completions", json=body)).raise_for_status()

        started = time.monotonic()
        await asyncio.gather(*(one(*call) for call in calls))
        return time.monotonic() - started


async def measure(options: argparse.Namespace) -> dict:
    """Run both in turn and return the figures."""
    served = open_served(options)
    questions = list(read_questions(options.questions)) * options.times
    questions = [{**row, "id": f"{row['id']}/{number}"} for number, row in enumerate(questions)]
    ours, theirs = [], []
    for turn in range(options.repeat + 1):
        seconds, calls = await evaluator(served, questions, options.retrieval_url, options.concurrency)
        reference = await alone(options.model_url, options.model, calls, options.concurrency)
        if turn:
            ours.append(seconds)
            theirs.append(reference)
    await served.server.close()
    tokens = sum(count for _, count in calls)
    return {
        "questions": len(questions),
        "generations": len(calls),
        "sampled_tokens": tokens,
        "evaluator_questions_per_s": round(len(questions) / statistics.median(ours), 1),
        "evaluator_s": [round(seconds, 2) for seconds in ours],
        "alone_s": [round(seconds, 2) for seconds in theirs],
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
    }


def main() -> None:
    """Parse the command line, measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_questions(parser)
    add_model(parser)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--times", type=int, default=3, help="how often the questions are asked in one run")
    parser.add_argument("--repeat", type=int, default=3)
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
