"""R1-Searcher++: format, answer and group reward."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.methods.r1_searcher_pp import R1SearcherPP, group_rewards
from research_rl.types import Answer, Invalid, Passage, Search

METHOD = R1SearcherPP()
SEARCH = "I wonder. <external> who founded it </external>" + METHOD.render([[Passage("1", "T\nx")]])
RECALL = "<internal>It lies in Norway.</internal> "
TELL = "So \\boxed{Oslo}"


def test_a_turn_is_read_as_search_or_answer():
    assert METHOD.parse("a <external> q </external>") == Search("q")
    assert METHOD.parse(RECALL + TELL) == Answer("Oslo")
    for text in ("", "<external> </external>", "q</external>", "\\boxed{open"):
        assert isinstance(METHOD.parse(text), Invalid)


@pytest.mark.parametrize(
    ("text", "answer", "form"),
    [
        (SEARCH + TELL, 1, 0),
        (RECALL + TELL, 1, 0),
        (RECALL + SEARCH + RECALL + SEARCH + TELL, 1, 0),
        (TELL, 1, 0),
        (SEARCH + "\\boxed{Bergen}", 0, 0),
        (SEARCH + "\\boxed{" + "word " * 10 + "Oslo}", 0, 0),
        (SEARCH + "\\boxed{the city of Oslo}", 1, 0),
        ("<internal>" + TELL, 1, -2),
        ("</internal><internal>" + TELL, 1, -2),
        ("<document>made up</document>" + TELL, 1, -2),
        (RECALL + "<document>made up</document>" + TELL, 1, -2),
        ("<internal><external>q</external></internal>" + TELL, 0, -2),
        (TELL + TELL, 1, -2),
        ("Oslo", 0, -2),
        ("\\boxed{<internal></internal>Oslo}", 1, -2),
    ],
)
def test_format_and_answer_are_scored_as_the_paper_says(text, answer, form):
    reward = METHOD.reward(METHOD.read(text), ["Oslo"])
    assert (reward.components["answer"], reward.components["format"]) == (answer, form)
    assert reward.score == answer + form


@pytest.mark.parametrize(
    ("correct", "searches", "expected"),
    [
        ([False, False, False], [1, 2, 3], [0, 0, 0]),  # all wrong
        ([True, False, False], [1, 2, 3], [0, 0, 0]),  # one right: nothing to compare it with
        ([True, True, True], [2, 2, 2], [0, 0, 0]),  # equal counts
        ([True, True, False], [1, 2, 0], [0.5, 0, 0]),  # σ² = 1/4; the wrong one with no search at all gets nothing
        ([True, True, True], [1, 1, 2], [4 / 9, 4 / 9, 0]),  # ties at the minimum: σ² = 2/9
        ([True, True], [0, 2], [2, 0]),  # σ² = 1: just η
        ([True, True], [0, 8], [2, 0]),  # σ² = 16: cut at η
    ],
)
def test_the_group_reward_goes_to_the_correct_with_the_fewest_searches(correct, searches, expected):
    assert group_rewards(correct, searches) == pytest.approx(expected)


def test_the_unconfirmed_choices_of_the_group_reward_are_options():
    assert group_rewards([True, True], [1, 2], std="sample") == pytest.approx([1.0, 0])
    assert group_rewards([True, True], [1, 2], form="variance") == pytest.approx([0.25, 0])
    assert group_rewards([True, True], [1, 2], form="std") == pytest.approx([0.5, 0])
    assert group_rewards([True, True], [0, 8], eta=1.0) == pytest.approx([1.0, 0])
    with pytest.raises(ConfigError, match="valid: population, sample"):
        R1SearcherPP(std="biased")  # type: ignore[arg-type]


def test_an_empty_answer_is_never_right():
    for golden in ("A", "The", ""):
        assert not METHOD.right("", [golden])
        assert not METHOD.right("the", [golden])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=20))
def test_the_group_reward_is_bounded_and_never_paid_for_a_wrong_or_a_longer_way(rows):
    correct, searches = [row[0] for row in rows], [row[1] for row in rows]
    least = min((count for right, count in rows if right), default=None)
    for (right, count), reward in zip(rows, group_rewards(correct, searches), strict=True):
        assert 0 <= reward <= 2
        assert reward == 0 or (right and count == least)


def test_a_method_adds_the_group_reward_to_the_scores_of_a_question():
    texts = [SEARCH + TELL, SEARCH + SEARCH + TELL, "<internal>" + TELL, "no"]
    trajectories = [METHOD.read(text) for text in texts]
    rewards = [METHOD.reward(trajectory, ["Oslo"]) for trajectory in trajectories]
    # searches of the correct: 1, 2 and (malformed, but right) 0: σ² = 2/3
    assert [round(reward.score, 4) for reward in METHOD.regroup(trajectories, rewards)] == [
        1.0,
        1.0,
        round(-1 + 4 / 3, 4),
        -2.0,
    ]
    strict = R1SearcherPP(correct="answer_and_format").regroup(trajectories, rewards)
    assert [reward.score for reward in strict] == [1.5, 1.0, -1.0, -2.0]
    assert R1SearcherPP(group=False).regroup(trajectories, rewards) == rewards
