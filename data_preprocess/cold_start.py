"""The supervised cold start by rejection sampling: sample rollouts, keep the right and well-formed, write a set for verl's SFT trainer."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.errors import DataError
from research_rl.files import write_text
from research_rl.inference.sampling import Metric, read_log
from research_rl.methods.base import Method
from research_rl.questions import write_parquet
from research_rl.types import StopReason, Trajectory


def outcome(method: Method, trajectory: Trajectory, golden_answers: Sequence[str], accept: Metric) -> dict[str, Any]:
    """Return what is kept of a rollout: whether it is accepted, why not, and its segments (text, and whether the policy wrote it)."""
    answer = method.answer(trajectory)
    reason = (
        "unfinished" if not trajectory.ended_with_eos and trajectory.stop_reason is not StopReason.ANSWERED
        else "no answer" if answer is None
        else "wrong" if not accept(answer, golden_answers)
        else "malformed" if not method.well_formed(trajectory)
        else ""
    )  # fmt: skip  # a table
    return {"reason": reason, "searches": len(trajectory.searches), "segments": segments(trajectory) if not reason else []}


def segments(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Return the pieces of a response, in order, and whether the policy wrote them."""
    return [
        {"text": text, "learn": learn}
        for turn in trajectory.turns
        for text, learn in ((turn.text, True), (turn.observation, False))
        if text
    ]


def training_row(method: Method, identifier: str, question: str, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of `train.parquet`; what reads it is `research_rl.codec.encode_row`."""
    return {
        "id": identifier,
        "prompt": json.dumps(method.prompt(question), ensure_ascii=False),  # a text or messages, as JSON
        "prefill": method.prefill,
        "segments": list(pieces),
    }


def select(
    method: Method, log: Path, questions: Sequence[dict[str, Any]], out: Path, per_question: int, rows: int | None, seed: int
) -> dict[str, Any]:
    """Write `train.parquet` (prompt, segments) from the accepted rollouts, and return the card.

    Of each question at most `per_question`, those with the fewest searches first; in all at most `rows`, chosen by seed.

    Raises:
        DataError: nothing was accepted.
    """
    rng = random.Random(seed)
    reasons: Counter[str] = Counter()
    kept = []
    sampled = read_log(log)
    for row in questions:
        outcomes = [outcome for _, outcome in sorted(sampled.get(row["id"], {}).items())]
        reasons.update(outcome["reason"] or "accepted" for outcome in outcomes)
        good = [outcome for outcome in outcomes if not outcome["reason"]]
        rng.shuffle(good)
        good.sort(key=lambda outcome: outcome["searches"])
        kept += [(row, outcome) for outcome in good[:per_question]]
    if not kept:
        raise DataError(f"no rollout was accepted of {sum(reasons.values())} ({dict(reasons)}): see {log}")
    rng.shuffle(kept)
    kept = kept[:rows]
    table = [training_row(method, str(row["id"]), row["question"], outcome["segments"]) for row, outcome in kept]
    write_parquet(out / "train.parquet", table)
    card = {"questions": len(questions), "rollouts": dict(sorted(reasons.items())), "rows": len(table), "method": method.name}
    write_text(out / "card.json", json.dumps(card, indent=2))
    return card
