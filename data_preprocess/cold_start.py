"""The supervised cold start by rejection sampling: sample rollouts, keep the right and well-formed, write a set for verl's SFT trainer.

Every finished rollout is appended to `samples.jsonl` at once; run again, the command goes on with the questions that are left.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_preprocess.formats import write_parquet
from research_rl.errors import DataError, missing_extra
from research_rl.files import changed_settings, write_text
from research_rl.methods.base import Method
from research_rl.metrics import cover_em_substring, cover_em_tokens, exact_match
from research_rl.retrieval import RetrievalClient
from research_rl.rollout import Generate, HFCodec, rollout
from research_rl.types import Budget, StopReason, Trajectory

Metric = Callable[[str, Sequence[str]], float | bool]
ACCEPT: dict[str, Metric] = {
    "em": exact_match, "cover_em_tokens": cover_em_tokens, "cover_em_substring": cover_em_substring,
}  # fmt: skip


SELECTION = frozenset(
    {"per_question", "rows", "seed", "out", "command", "model_url", "retrieval_url"}
)  # may change between two runs


def same_sampling(path: Path, options: dict[str, str]) -> None:
    """Refuse to add to samples that were made with other options; write the options beside them.

    Raises:
        DataError: they differ.
    """
    if changed := changed_settings(path, options):
        raise DataError(f"{path.parent} holds samples made with other options ({changed}): choose another --out")
    write_text(path, json.dumps(options, indent=1))


async def sample(
    method: Method, codec: HFCodec, questions: Sequence[dict[str, Any]], samples: int, accept: Metric, budget: Budget,
    generate: Generate, client: RetrievalClient, log: Path, concurrency: int = 64,
) -> None:  # fmt: skip
    """Roll out every question `samples` times and append each question's outcomes to `log` when all of its rollouts are there.

    Raises:
        RetrievalError, GenerationError: a server is gone for good; what was finished is in `log`.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra("tqdm", "eval") from error
    done = {row["id"] for row in read_log(log)}
    left = [row for row in questions if row["id"] not in done]
    gate = asyncio.Semaphore(concurrency)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file, tqdm(total=len(left), unit="question", disable=None) as progress:

        async def one(row: dict[str, Any]) -> dict[str, Any]:
            prompt = codec.encode_prompt(method.prompt(row["question"]), method.prefill)
            async with gate:
                trajectory = await rollout(method, codec, row["question"], prompt, budget, generate, client.search)
            return outcome(method, trajectory, row["golden_answers"], accept)

        async def all_of(row: dict[str, Any]) -> None:
            outcomes = await asyncio.gather(*(one(row) for _ in range(samples)))
            file.write(
                json.dumps({"id": row["id"], "question": row["question"], "outcomes": outcomes}, ensure_ascii=False) + "\n"
            )
            progress.update()

        async with asyncio.TaskGroup() as tasks:
            for row in left:
                tasks.create_task(all_of(row))


def outcome(method: Method, trajectory: Trajectory, golden_answers: Sequence[str], accept: Metric) -> dict[str, Any]:
    """Return what is kept of a rollout: whether it is accepted, why not, and its segments (text, and whether the policy wrote it)."""
    answer = method.answer(trajectory)
    reason = (
        "unfinished" if not trajectory.ended_with_eos and trajectory.stop_reason is not StopReason.ANSWERED
        else "no answer" if answer is None
        else "wrong" if not accept(answer, golden_answers)
        else "malformed" if not method.well_formed(trajectory)
        else ""
    )  # fmt: skip
    segments = [
        {"text": text, "learn": learn}
        for turn in trajectory.turns
        for text, learn in ((turn.text, True), (turn.observation, False))
        if text
    ]
    return {"reason": reason, "searches": len(trajectory.searches), "segments": segments if not reason else []}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the outcomes so far; a line that a kill cut off is left out, and its question asked again."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.split("\n") if line]  # splitlines() would split at U+2028 in a passage, too


def select(method: Method, log: Path, out: Path, per_question: int, rows: int | None, seed: int) -> dict[str, Any]:
    """Write `train.parquet` (prompt, segments) from the accepted rollouts, and return the card.

    Of each question at most `per_question`, those with the fewest searches first; in all at most `rows`, chosen by seed.

    Raises:
        DataError: nothing was accepted.
    """
    rng = random.Random(seed)
    reasons: Counter[str] = Counter()
    kept = []
    outcomes = read_log(log)
    for row in outcomes:
        reasons.update(outcome["reason"] or "accepted" for outcome in row["outcomes"])
        good = [outcome for outcome in row["outcomes"] if not outcome["reason"]]
        rng.shuffle(good)
        good.sort(key=lambda outcome: outcome["searches"])
        kept += [(row, outcome) for outcome in good[:per_question]]
    if not kept:
        raise DataError(f"no rollout was accepted of {sum(reasons.values())} ({dict(reasons)}): see {log}")
    rng.shuffle(kept)
    kept = kept[:rows]
    table = [
        {
            "id": str(row["id"]),
            "prompt": json.dumps(method.prompt(row["question"]), ensure_ascii=False),  # a text, or messages
            "prefill": method.prefill,
            "segments": outcome["segments"],
        }
        for row, outcome in kept
    ]
    write_parquet(out / "train.parquet", table)
    card = {"questions": len(outcomes), "rollouts": dict(sorted(reasons.items())), "rows": len(table), "method": method.name}
    write_text(out / "card.json", json.dumps(card, indent=2))
    return card
