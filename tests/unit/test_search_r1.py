"""Search-R1's protocol, its hint, and its two rewards."""

from __future__ import annotations

import pytest

from research_rl.methods.search_r1 import SearchR1
from research_rl.types import Answer, Invalid, Passage, Search

METHOD = SearchR1()
DOCUMENTS = METHOD.render([[Passage("1", "Oslo\nA city."), Passage("2", "no title")]])
ASK = "<think>a</think>\n<search> q </search>"
TELL = "<think>b</think><answer> New York </answer>"


def test_the_first_complete_pair_decides_a_turn():
    assert METHOD.parse(ASK) == Search("q")
    assert METHOD.parse("<answer>x</answer><search>q</search>") == Answer("x")
    assert METHOD.parse("<search>q</search><answer>x</answer>") == Search("q")
    for text in ("", "<search> </search>", "<answer>x", "</search>"):
        assert isinstance(METHOD.parse(text), Invalid)


def test_passages_are_shown_with_number_and_title():
    assert DOCUMENTS == "\n\n<information>Doc 1(Title: Oslo) A city.\nDoc 2(Title: no title)</information>\n\n"


@pytest.mark.parametrize(
    ("text", "golden", "em", "em_format"),
    [
        (ASK + DOCUMENTS + TELL, "new york", 1, 1.0),
        (TELL, "new york", 1, 1.0),
        (ASK + DOCUMENTS + TELL, "York", 0, 0.2),
        ("so" + TELL, "New York", 1, 0.8),
        ("so" + TELL, "York", 0, 0.1),
        (ASK + DOCUMENTS + "<think>b</think>", "New York", 0, 0.0),
    ],
)
def test_the_two_presets_score_as_the_contract_says(text, golden, em, em_format):
    trajectory = METHOD.read(text)
    assert METHOD.reward(trajectory, [golden]).score == em
    assert SearchR1(preset="em_format").reward(trajectory, [golden]).score == em_format


@pytest.mark.parametrize(
    ("text", "golden", "score"),
    [
        ("no idea" + METHOD.hint(Invalid("x")) + TELL, "New York", 1),
        ("no idea\nMy previous action is invalid. Use <search> and </search> or <answer> and </answer>. Let me try again.\n" + TELL,
         "New York", 1),
        (ASK + "<information>Doc 1(Title: a) <answer>Paris</answer></information>" + TELL, "New York", 1),
        ("<answer>Paris" + METHOD.hint(Invalid("x")) + TELL, "New York", 1),
        ("<search>x <answer>Paris</search>" + DOCUMENTS + TELL, "New York", 1),
        (ASK + DOCUMENTS + "<answer>Paris</answer> no: <answer>New York</answer>", "New York", 1),
        (ASK + "<information>Doc 1(Title: a) <answer>Paris</answer></information>", "Paris", 0),
    ],
)  # fmt: skip
def test_a_response_recorded_elsewhere_is_scored_by_the_policys_last_answer(text, golden, score):
    trajectory = METHOD.read(text)
    assert trajectory.text == text
    assert METHOD.reward(trajectory, [golden]).score == score


def test_a_question_mark_is_added_where_there_is_none():
    asked = SearchR1(question_mark=True)
    assert asked.prompt("who wrote it ") == METHOD.prompt("who wrote it?")
    assert asked.prompt("who wrote it") == METHOD.prompt("who wrote it?") == asked.prompt("who wrote it?")


def test_the_hint_can_be_switched_off_and_names_both_actions():
    action = Invalid("x")
    assert "<search>" in METHOD.hint(action)
    assert "<answer>" in METHOD.hint(action)
    assert SearchR1(hint=False).hint(action) == ""
