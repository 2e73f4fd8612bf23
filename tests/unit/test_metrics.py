"""Answer metrics against definitions and recorded figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.metrics import cover_em_substring, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat!", "cat"),
        ("U.S.A.", "usa"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("", ""),
        ("A-B c", "ab c"),
    ],
)
def test_normalisation_lowers_deletes_punctuation_and_drops_articles(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "golden", "expected"),
    [
        ("Barack Obama", ["Obama"], 2 / 3),
        ("the red car", ["red car", "car"], 1.0),
        ("yes it is", ["yes"], 0.0),
        ("Yes.", ["yes"], 1.0),
        ("no", ["nothing"], 0.0),
        ("", ["x"], 0.0),
        ("new new york", ["new york"], 0.8),
    ],
)
def test_f1_is_the_best_token_overlap_and_closed_answers_must_be_equal(prediction, golden, expected):
    assert f1(prediction, golden) == pytest.approx(expected)


@given(st.text(), st.text())
def test_f1_is_symmetric_bounded_and_one_for_equal_answers(left, right):
    assert 0.0 <= f1(left, [right]) <= 1.0
    assert f1(left, [right]) == pytest.approx(f1(right, [left]))
    if normalize_answer(left):
        assert f1(left, [left]) == 1.0


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_an_exact_match_is_also_a_cover_match(prediction, golden):
    assert exact_match(prediction, golden) <= cover_em_substring(prediction, golden)


@given(st.text())
def test_normalisation_is_stable_but_for_articles_made_by_deleting_punctuation(text):
    once = normalize_answer(text)
    assert once == " ".join(once.split())
    assert set(normalize_answer(once).split()) <= set(once.split())
