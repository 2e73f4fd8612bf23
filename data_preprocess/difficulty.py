"""Selection by difficulty for a model (R1-Searcher, section on data selection): how often, or how soon, its rollouts with search are right.

R1-Searcher's buckets, by the number n of rollouts until the first right one: easy n < 10, medium 10 ≤ n ≤ 20, difficult n > 20. Or by the
share of right rollouts: difficult below the lower bound, easy above the upper. The raw counts are kept, so that both can be had of one
sampling.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_preprocess.convert import Conversion, write_split
from data_preprocess.mixing import shares
from research_rl.errors import ConfigError
from research_rl.files import write_jsonl
from research_rl.inference.sampling import Metric, Outcome
from research_rl.methods.base import Method
from research_rl.questions import Question
from research_rl.types import Trajectory

BUCKETS = ("easy", "medium", "difficult")
BOUNDS = {"first-success": (10.0, 20.0), "pass-rate": (0.1, 0.9)}


@dataclass(frozen=True)
class Selection:
    """Which questions are taken: the measure, its bounds ("medium" includes both), the ratio of the buckets, rows in all, the seed."""

    by: str = "first-success"
    bounds: tuple[float, float] = BOUNDS["first-success"]
    ratio: Mapping[str, Fraction] = field(default_factory=lambda: {"medium": Fraction(1)})
    rows: int | None = None
    seed: int = 1

    def check(self, rollouts: int, stop_early: bool) -> None:
        """Refuse a selection that these rollouts cannot decide.

        Raises:
            ConfigError: an unknown measure or bucket, bounds in the wrong order, or too few rollouts for them.
        """
        if self.by not in BOUNDS:
            raise ConfigError(f"unknown measure {self.by!r}; choose one of: {', '.join(BOUNDS)}")
        if not self.ratio or set(self.ratio) - set(BUCKETS):
            raise ConfigError(
                f"the ratio names buckets of {', '.join(BUCKETS)}, for example medium=1,difficult=2; got {dict(self.ratio)}"
            )
        low, high = self.bounds
        if low > high:
            raise ConfigError(f"the lower bound must not exceed the upper, got {low:g},{high:g}")
        if self.by == "first-success" and rollouts < high:
            raise ConfigError(
                f"{rollouts} rollouts a question cannot tell whether the first success comes by rollout {high:g}: sample that many"
            )
        if self.by == "pass-rate" and stop_early:
            raise ConfigError("a pass rate needs every rollout: leave out --stop-early, or select by first-success")


def outcome(method: Method, trajectory: Trajectory, golden_answers: Sequence[str], accept: Metric) -> Outcome:
    """Return what is kept of a rollout: answer, whether it is right, and what it cost in searches, sampled tokens and seconds."""
    answer = method.answer(trajectory)
    return {
        "right": answer is not None and bool(accept(answer, golden_answers)),
        "answer": answer,
        "searches": len(trajectory.searches),
        "sampled_tokens": sum(trajectory.response_mask),
        "prompt_tokens": len(trajectory.prompt_ids),
        "stop": str(trajectory.stop_reason),
        "generate_s": round(trajectory.seconds_generating, 3),
        "search_s": round(trajectory.seconds_searching, 3),
    }


def count(outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    """Return the raw counts of a question: rollouts, successes, and the number of the first success (None if there is none)."""
    right = sorted(number for number, found in outcomes.items() if found["right"])
    return {"rollouts": len(outcomes), "successes": len(right), "first_success": right[0] if right else None}


def bucket(counts: Mapping[str, Any], selection: Selection) -> str:
    """Return the bucket of a question by its counts."""
    low, high = selection.bounds
    if selection.by == "first-success":
        first = counts["first_success"]
        return "difficult" if first is None or first > high else "easy" if first < low else "medium"
    rate = counts["successes"] / counts["rollouts"]
    return "difficult" if rate < low else "easy" if rate > high else "medium"


def select(
    questions: Sequence[Question],
    sampled: Mapping[str, Mapping[int, Outcome]],
    selection: Selection,
    out: Path,
    card: dict[str, Any],
    split: str = "train",
) -> dict[str, Any]:
    """Write `counts.jsonl` (every question with raw counts and bucket) and the chosen questions as a split; return the card.

    Raises:
        DataError: a bucket has too few questions for the ratio.
    """
    buckets: dict[str, list[Question]] = {name: [] for name in BUCKETS}
    rows = []
    for question in questions:
        counts = count(sampled[question.id])
        name = bucket(counts, selection)
        rows.append({"id": question.id, "question": question.question, **counts, "difficulty": name})
        buckets[name].append(replace(question, difficulty=name))
    write_jsonl(out / "counts.jsonl", rows)
    wanted = [name for name in BUCKETS if selection.ratio.get(name)]
    sizes = shares([selection.ratio[name] for name in wanted], [len(buckets[name]) for name in wanted], selection.rows, wanted)
    rng = random.Random(selection.seed)
    done = Conversion(len(questions))
    for name, size in zip(wanted, sizes, strict=True):
        done.questions += rng.sample(buckets[name], size)
    done.not_drawn = len(questions) - len(done.questions)
    rng.shuffle(done.questions)
    return write_split(
        out,
        split,
        done,
        {
            **card,
            "selection": {
                "by": selection.by,
                "bounds": list(selection.bounds),
                "seed": selection.seed,
                "rows": selection.rows,
                "ratio": {name: str(share) for name, share in selection.ratio.items()},
            },
            "buckets": {name: len(members) for name, members in buckets.items()},
            "successes": {str(number): times for number, times in sorted(Counter(row["successes"] for row in rows).items())},
            "cost": cost(sampled, [question.id for question in questions]),
        },
    )


def cost(sampled: Mapping[str, Mapping[int, Outcome]], ids: Sequence[str]) -> dict[str, float]:
    """Return what the rollouts cost together: searches, tokens, and seconds spent waiting for engine and service (summed over rollouts)."""
    outcomes = [found for identifier in ids for found in sampled[identifier].values()]
    names = ("searches", "prompt_tokens", "sampled_tokens", "generate_s", "search_s")
    return {"rollouts": len(outcomes), **{name: round(sum(found[name] for found in outcomes), 1) for name in names}}


def parse_ratio(text: str) -> dict[str, Fraction]:
    """Return {bucket: share} of a text such as "medium=1,difficult=2".

    Raises:
        ConfigError: it is no such text.
    """
    try:
        found = {name.strip(): Fraction(share) for name, share in (part.split("=") for part in text.split(","))}
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"a ratio looks like medium=1,difficult=2, got {text!r}") from None
    if any(share < 0 for share in found.values()) or not any(found.values()):
        raise ConfigError(f"a share must not be negative, and one must be above 0, got {text!r}")
    return found
