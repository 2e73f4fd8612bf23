"""Selection by difficulty: buckets by hand, counts, ratios, and what a run costs."""

from __future__ import annotations

import asyncio
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preprocess.difficulty import Selection, bucket, count, parse_ratio, select
from data_preprocess.mixing import shares
from research_rl.errors import ConfigError, DataError
from research_rl.inference.sampling import Busy
from research_rl.questions import Question, read_questions
from research_rl.rollout import Generation


def rollouts(pattern: str) -> dict[int, dict]:
    """Return outcomes from a pattern: r is right, w is wrong."""
    return {
        number: {
            "right": letter == "r",
            "searches": 1,
            "sampled_tokens": 10,
            "prompt_tokens": 5,
            "generate_s": 0.5,
            "search_s": 0.1,
        }
        for number, letter in enumerate(pattern, 1)
    }


@pytest.mark.parametrize(
    ("pattern", "first", "rate"),
    [
        ("r" * 20, "easy", "easy"),
        ("w" * 8 + "r" + "w" * 11, "easy", "medium"),  # first success at 9
        ("w" * 9 + "r" + "w" * 10, "medium", "medium"),  # at 10
        ("w" * 19 + "r", "medium", "medium"),  # at 20; rate 0.05 … see the bounds below
        ("w" * 20, "difficult", "difficult"),
        ("w" * 20 + "r" + "w" * 4, "difficult", "difficult"),  # at 21
        ("r" * 19 + "w", "easy", "easy"),
        ("r" * 18 + "w" * 2, "easy", "medium"),  # 0.9: a bound belongs to medium
    ],
)
def test_buckets_are_the_papers_and_bounds_belong_to_medium(pattern, first, rate):
    counts = count(rollouts(pattern))
    assert bucket(counts, Selection()) == first
    assert bucket(counts, Selection("pass-rate", (0.05, 0.9))) == rate


@given(st.text("rw", min_size=1, max_size=30))
def test_counts_are_raw(pattern):
    counts = count(rollouts(pattern))
    assert counts["rollouts"] == len(pattern)
    assert counts["successes"] == pattern.count("r")
    assert counts["first_success"] == (pattern.index("r") + 1 if "r" in pattern else None)


PATTERNS = ["r" * 20] * 6 + ["w" * 12 + "r" * 8] * 4 + ["w" * 20] * 3
QUESTIONS = [Question(str(number), f"question {number}", ("x",), data_source="d") for number in range(len(PATTERNS))]
SAMPLED = {str(number): rollouts(pattern) for number, pattern in enumerate(PATTERNS)}


def test_buckets_are_mixed_in_the_ratio_and_the_raw_counts_of_all_are_kept(tmp_path):
    selection = Selection(ratio=parse_ratio("medium=1,difficult=1"), seed=3)
    card = select(QUESTIONS, SAMPLED, selection, tmp_path, {"model": "m"})
    rows = list(read_questions(tmp_path / "train.jsonl"))
    assert sorted(row["metadata"]["difficulty"] for row in rows) == ["difficult"] * 3 + ["medium"] * 3
    assert card["buckets"] == {"easy": 6, "medium": 4, "difficult": 3}
    assert card["difficulties"] == {"difficult": 3, "medium": 3}
    assert card["successes"] == {"0": 3, "8": 4, "20": 6}
    assert card["cost"] == {
        "rollouts": 260, "searches": 260, "prompt_tokens": 1300, "sampled_tokens": 2600, "generate_s": 130.0, "search_s": 26.0,
    }  # fmt: skip
    counts = [json.loads(line) for line in (tmp_path / "counts.jsonl").read_text().splitlines()]
    assert len(counts) == 13
    assert counts[6] == {
        "id": "6", "question": "question 6", "rollouts": 20, "successes": 8, "first_success": 13, "difficulty": "medium",
    }  # fmt: skip
    again = tmp_path / "again"
    select(QUESTIONS, SAMPLED, selection, again, {"model": "m"})
    assert (again / "train.parquet").read_bytes() == (tmp_path / "train.parquet").read_bytes()


def test_too_few_of_a_bucket_says_how_many_rows_there_can_be(tmp_path):
    with pytest.raises(DataError, match=r"difficult has 3 for 4\): at most 6 rows"):
        select(QUESTIONS, SAMPLED, Selection(ratio=parse_ratio("medium=1,difficult=1"), rows=8), tmp_path, {})
    assert (tmp_path / "counts.jsonl").exists()  # the counts cost the most and are kept
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("selection", "rollouts", "early", "message"),
    [
        (Selection("hops"), 20, False, "choose one of: first-success, pass-rate"),
        (Selection(ratio={"hard": Fraction(1)}), 20, False, "easy, medium, difficult"),
        (Selection(ratio={}), 20, False, "easy, medium, difficult"),
        (Selection(bounds=(20, 10)), 20, False, "must not exceed"),
        (Selection(), 10, False, "10 rollouts a question cannot tell"),
        (Selection("pass-rate", (0.1, 0.9)), 20, True, "a pass rate needs every rollout"),
    ],
)
def test_what_the_rollouts_cannot_tell_is_refused_before_any_is_made(selection, rollouts, early, message):
    with pytest.raises(ConfigError, match=message):
        selection.check(rollouts, early)


@pytest.mark.parametrize("text", ["medium", "medium=x", "medium=-1", "medium=0", "medium=1;difficult=2"])
def test_a_ratio_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"ratio|share"):
        parse_ratio(text)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 200)), min_size=1, max_size=5), st.integers(1, 300))
def test_shares_add_up_and_are_off_by_less_than_one(parts, rows):
    weights, available = [Fraction(weight) for weight, _ in parts], [count for _, count in parts]
    try:
        sizes = shares(weights, available, rows, [str(number) for number in range(len(parts))])
    except DataError:
        return
    assert sum(sizes) == rows
    assert all(abs(size - rows * weight / sum(weights)) < 1 for size, weight in zip(sizes, weights, strict=True))
    assert all(size <= count for size, count in zip(sizes, available, strict=True))


def test_the_engine_is_busy_while_any_call_is_under_way():
    async def generate(ids, most, stop):
        await asyncio.sleep(0.1)
        return Generation([1])

    async def run():
        busy = Busy(generate)
        await asyncio.gather(*(busy([], 1, ()) for _ in range(5)))
        await asyncio.sleep(0.1)
        await busy([], 1, ())
        return busy.seconds

    assert 0.2 <= asyncio.run(run()) < 0.3


def test_selecting_without_questions_says_so(tmp_path, capsys):
    from data_preprocess.__main__ import main

    missing = Path(tmp_path / "none.jsonl")
    arguments = ["select", "--questions", str(missing), "--out", str(tmp_path / "o"), "--model", "m", "--tokenizer", "t"]
    assert main(arguments) == 1
    assert f"no questions at {missing}" in capsys.readouterr().err
    assert main([*arguments, "--bounds", "x"]) == 1
    assert "--bounds takes two numbers" in capsys.readouterr().err
