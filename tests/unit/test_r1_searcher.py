"""R1-Searcher's protocol, its format rules one by one, and its five rewards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.methods import load_method
from research_rl.methods.r1_searcher import PRESETS, RULES, R1Searcher
from research_rl.types import Answer, Invalid, Passage, Search

METHOD = R1Searcher()
ASK = " Which is it?<|begin_of_query|> the query <|end_of_query|>"
DOCUMENTS = METHOD.render([[Passage("1", "Title\ntext")]])
TELL = "So it is.</think>\n<answer> New York </answer>"
GOOD = ASK + DOCUMENTS + TELL


def score(preset: str, text: str, golden: str = "New York") -> float:
    return R1Searcher(preset=preset).reward(METHOD.read(text), [golden]).score


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (ASK, Search("the query")),
        ('<|begin_of_query|> "a"  \n b<|end_of_query|>', Search("a b")),
        ("<|begin_of_query|>old <|begin_of_query|>new<|end_of_query|>", Search("new")),
        (TELL, Answer("New York")),
        ("<answer>a</answer> or <answer>b</answer>", Answer("b")),
    ],
)
def test_a_turn_is_read_as_search_or_answer(text, action):
    assert METHOD.parse(text) == action


@pytest.mark.parametrize(
    "text", ["", '<|begin_of_query|> " <|end_of_query|>', "x<|end_of_query|>", "<answer>", "</think> New York"]
)
def test_a_turn_with_neither_is_invalid_and_ends_the_rollout(text):
    action = METHOD.parse(text)
    assert isinstance(action, Invalid)
    assert METHOD.hint(action) == ""


def test_passages_are_numbered_and_lose_a_leading_number_of_their_own():
    passages = [[Passage("1", "12 Angry Men\nfilm"), Passage("2", "Oslo\ncity")]]
    assert METHOD.render(passages) == (
        "\n\n<|begin_of_documents|>\n(1)Angry Men\nfilm\n(2)Oslo\ncity\n<|end_of_documents|>\n\n"
    )
    assert METHOD.render([[]]) == "\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n"


def test_the_prompt_opens_the_thought_once():
    assert str(METHOD.prompt("Q?")).endswith("User:Q?\nAssistant:")
    assert METHOD.prefill == " <think>"
    messages = R1Searcher(template="sys").prompt("Q?")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert R1Searcher(template="sys").prefill == "<think>"


def test_a_prompt_file_that_opens_the_thought_itself_is_left_alone(tmp_path):
    (tmp_path / "p.txt").write_text("User:$question\nAssistant: <think>")
    assert R1Searcher(prompt_file=str(tmp_path / "p.txt")).prefill == ""


@given(st.lists(st.sampled_from([ASK, DOCUMENTS, TELL, "\n\n", "<|begin_of_documents|>", "x"])))
def test_a_recorded_response_is_read_without_losing_a_character(parts):
    assert METHOD.read("".join(parts)).text == "".join(parts)


# (broken rule, a response that breaks it and no other)
BROKEN = [
    ("counts_equal", GOOD.replace("\n(1)", "\n")),
    ("counts_equal", "<|begin_of_query|> never answered" + GOOD),
    ("think_closed_once", "<think>" + GOOD),
    ("think_closed_once", GOOD.replace("</think>", "")),
    ("one_answer", GOOD + "<answer> New York </answer>"),
    ("one_answer", GOOD.replace("</answer>", "")),
    ("no_chinese", "想" + GOOD),
]


@pytest.mark.parametrize(("rule", "text"), BROKEN)
def test_each_rule_is_broken_by_its_own_fault_alone(rule, text):
    assert all(check(GOOD) for check in RULES.values())
    assert [name for name, check in RULES.items() if not check(text) and name != "short_answer"] == [rule]


def test_the_rules_of_the_released_base_model_server():
    assert not RULES["short_answer"](GOOD.replace("New York", "a b c d e f g h i j k"))
    assert RULES["short_answer"](GOOD.replace("New York", "a b c d e f g h i j"))
    assert not RULES["no_assistant"](GOOD + "\nAssistant: hello")
    assert not RULES["no_marker_in_answer"]("<answer><|begin_of_query|></answer>")
    assert RULES["no_chinese"](GOOD.replace("text", "中文"))  # a passage may


@pytest.mark.parametrize(
    ("text", "golden", "expected"),
    [  # stage1_paper, stage1_llama, stage2_paper, stage2_llama, qwen_zero
        (GOOD, "New York", (1.0, 2.0, 1.0, 1.0, 1.0)),
        (GOOD, "York", (1.0, 2.0, 2 / 3, 2 / 3, 2 / 3)),
        (GOOD, "Paris", (1.0, 0.0, 0.0, 0.0, 0.0)),
        (TELL, "New York", (0.5, 1.5, 1.0, 1.0, 1.0)),
        (ASK + DOCUMENTS + "New York", "New York", (0.5, -0.5, -2.0, -1.0, -2.0)),
        (ASK, "New York", (0.0, -1.0, -2.0, -1.0, -2.0)),
        ("<think>" + GOOD, "New York", (0.5, 1.5, -1.0, 0.0, -1.0)),
        (GOOD.replace("text", "an assistant"), "New York", (1.0, 2.0, 1.0, 1.0, -1.0)),
        (GOOD.replace("text", "a <think> in a passage"), "New York", (1.0, 1.5, 1.0, 0.0, -1.0)),
        (TELL.replace("New York", "New York begin_of_query"), "New York", (0.0, 1.5, 4 / 7 - 2, 4 / 7, 4 / 7 - 2)),
        (GOOD.replace("New York", "It is in New York as far as one can tell from here"), "New York",
         (1.0, 2.0, 4 / 15, 4 / 15, 4 / 15 - 2)),
    ],
)  # fmt: skip
def test_the_five_presets_score_as_the_contract_says(text, golden, expected):
    assert [score(preset, text, golden) for preset in PRESETS] == pytest.approx(list(expected))


def test_an_answer_does_not_reach_over_a_search():
    text = "x </think><answer> maybe Paris" + ASK + DOCUMENTS + "so it is unknown</answer>"
    assert METHOD.answer(METHOD.read(text)) is None
    assert METHOD.answer(METHOD.read(GOOD)) == "New York"


def test_the_components_of_a_score_add_up_and_name_every_rule():
    reward = R1Searcher(preset="qwen_zero").reward(METHOD.read("<think>" + GOOD), ["York"])
    rules = {name for name in reward.components if name.startswith("rule/")}
    assert rules == {f"rule/{name}" for name in RULES}
    assert sum(value for name, value in reward.components.items() if name not in rules) == pytest.approx(reward.score)


def test_the_rules_are_selectable():
    chosen = R1Searcher(preset="qwen_zero", rules=["one_answer"])
    assert chosen.reward(METHOD.read("<think>" + GOOD), ["New York"]).score == 1.0
    with pytest.raises(ConfigError, match="valid: counts_equal"):
        R1Searcher(rules=["no_such_rule"])
    with pytest.raises(ConfigError, match="valid: stage1_paper"):
        load_method("r1_searcher", preset="stage3")


def test_several_golden_answers_count_as_their_best():
    assert R1Searcher().reward(METHOD.read(GOOD), ["Paris", "New York"]).score == 1.0
