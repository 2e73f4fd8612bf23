"""Answer metrics for anybody's predictions: against FlashRAG's evaluator, with intervals, and a paired test."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.__main__ import main
from evaluation.statistics import estimate, paired
from research_rl.errors import DataError
from research_rl.metrics import METRICS, f1, normalize_answer, precision, recall

WORDS = "the a an yes no noanswer Oslo oslo. U.S. New York-City 1984 1,984 café l'été “quoted” _x_ -- True noanswer!".split()


def pairs(count, seed=1):
    rng = random.Random(seed)
    for _ in range(count):
        prediction = " ".join(rng.choices(WORDS, k=rng.randint(0, 5)))
        golden = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            golden[-1] = prediction or "Oslo"
        yield prediction, golden


def flashrags(name):
    from flashrag.evaluator import metrics

    theirs = {"em": metrics.ExactMatch, "f1": metrics.F1_Score, "cover_em_substring": metrics.Sub_ExactMatch}
    theirs |= {"precision": metrics.Precision_Score, "recall": metrics.Recall_Score}
    metric = theirs[name]({"dataset_name": "hotpotqa", "metric_setting": {}})

    class Data:
        def __init__(self, rows):
            self.pred, self.golden_answers = [row[0] for row in rows], [row[1] for row in rows]
            self.choices = [[] for _ in rows]

    return lambda rows: metric.calculate_metric(Data(rows))[1]


@pytest.mark.parametrize("name", ["em", "f1", "cover_em_substring"])
def test_two_thousand_random_pairs_score_as_in_flashrags_evaluator(name):
    rows = list(pairs(2000))
    assert [METRICS[name](*row) for row in rows] == pytest.approx(flashrags(name)(rows), abs=1e-12)


@pytest.mark.parametrize("name", ["precision", "recall"])
def test_precision_and_recall_are_flashrags_for_one_golden_answer_and_never_higher_for_several(name):
    single = [(prediction, golden[:1]) for prediction, golden in pairs(2000)]
    assert [METRICS[name](*row) for row in single] == pytest.approx(flashrags(name)(single), abs=1e-12)
    several = list(pairs(2000))
    ours, theirs = [METRICS[name](*row) for row in several], flashrags(name)(several)
    assert all(own <= other + 1e-12 for own, other in zip(ours, theirs, strict=True))
    if (
        name == "recall"
    ):  # on purpose: FlashRAG's may be of different golden answers (a difference in precision is too rare to be drawn)
        assert ours != theirs


texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_f1_is_the_harmonic_mean_of_the_precision_and_recall_beside_it(prediction, golden):
    p, r = precision(prediction, golden), recall(prediction, golden)
    assert f1(prediction, golden) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


@given(texts, st.lists(texts, min_size=1, max_size=4), st.sampled_from(sorted(METRICS)))
def test_every_metric_is_between_nothing_and_one_and_full_for_a_golden_answer(prediction, golden, name):
    assert 0.0 <= METRICS[name](prediction, golden, normalize_answer) <= 1.0
    if normalize_answer(golden[0]):
        assert METRICS[name](golden[0], golden, normalize_answer) == 1.0


def written(tmp_path, rows):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"p": "Oslo", "g": "oslo", "j": "True", "r": "x"},
    {"p": "in Oslo", "g": ["Oslo", "Kristiania"], "j": " False.", "r": "y"},
    {"p": None, "g": 42, "j": True, "r": "z"},
]


def test_score_reports_shares_of_all_rows_and_counts_missing_predictions(tmp_path, capsys):
    arguments = [
        "score",
        written(tmp_path, ROWS),
        "--pred-field",
        "p",
        "--gold-field",
        "g",
        "--metrics",
        "em,cover_em_tokens",
        "--judge-field",
        "j",
    ]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["without_prediction"]) == (3, 1)
    assert {name: figures["mean"] for name, figures in result["metrics"].items()} == {
        "em": 0.3333, "cover_em_tokens": 0.6667, "judge": 0.6667,
    }  # fmt: skip
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "3 rows, 1 without a prediction, normalizer squad" in out
    assert "66.7 %" in out


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"p": "x"}], (), "row 1: no field 'g'"),
        ([{"p": ["x"], "g": "x"}], (), "p must be a text"),
        ([{"p": "x", "g": []}], (), "g must be a text or a list"),
        ([{"p": "x", "g": "x"}], ("--judge-field", "p"), "p must be a verdict"),
        *(
            ([{"p": said, "g": "x"}], ("--judge-field", "p"), "p must be a verdict")
            for said in (0.9, 1.5, "0.95", "1 out of 5", "1/10")
        ),
        ([{"p": "x", "g": "x"}], ("--metrics", "cem"), "choose of: em, f1"),
        ([{"p": "x", "g": "x"}], ("--method", "research"), "give both --method and --response-field"),
        ([], (), "holds no row"),
    ],
)
def test_a_metric_that_cannot_be_computed_ends_the_run(tmp_path, capsys, rows, more, message):
    assert main(["score", written(tmp_path, rows), "--pred-field", "p", "--gold-field", "g", *more]) == 1
    assert message in capsys.readouterr().err


def test_an_interval_holds_the_mean_and_narrows_with_more_rows():
    few, many = estimate([0.0, 1.0] * 20), estimate([0.0, 1.0] * 2000)
    assert few.low < few.mean < few.high
    assert many.high - many.low == pytest.approx((few.high - few.low) / 10, rel=0.15)
    assert estimate([0.0, 1.0] * 20) == few
    assert estimate([1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(DataError):
        estimate([])


def test_a_paired_test_sees_a_difference_that_holds_question_by_question():
    rng = random.Random(2)
    a = [float(rng.random() < 0.5) for _ in range(300)]
    better = [1.0 if rng.random() < 0.15 else value for value in a]
    same = rng.sample(a, len(a))
    assert paired(a, better).p < 0.001
    assert paired(a, better).low > 0
    assert paired(a, same).p > 0.05
    assert paired(a, a) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="300 and 299"):
        paired(a, a[1:])
