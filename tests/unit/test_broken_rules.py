"""Which rules a trajectory broke, read from its reward's components: of 0 some are good and some are bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.own_reward import ANSWER, SEARCH, Thrifty
from research_rl.methods import load_method, method_names
from research_rl.methods.base import Method
from research_rl.scoring import MALFORMED, REWARD, broken_rules, trajectory_metrics

RESEARCH = SEARCH + ANSWER
R1 = "I search. <|begin_of_query|>q<|end_of_query|>\n\n<|begin_of_documents|>\n(1)Bob\n<|end_of_documents|>\n\n"
R1_GOOD = R1 + "So.</think> <answer> Bob </answer>"
R1_ALONE = "I know.</think> <answer> Bob </answer>"
PP = "<external>q</external>\n<document>\n(1)Bob\n</document>\n\\boxed{Bob}"
SEARCH_R1 = "<think>a</think><search>q</search>\n\n<information>Doc 1(Title: a) b\n</information>\n\n<think>b</think><answer>Bob</answer>"
CALL = '<tool_call>\n{{"name": "{}", "arguments": {{"{}": "a"}}}}\n</tool_call>'
FRAME = "<|im_end|>\n<|im_start|>user\n<tool_response>\n[p1] Bob\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
CALLED = CALL.format("search", "query") + FRAME
BOXED = "\\boxed{Bob}"
OPEN = CALL.format("open", "id")
SCORED = [
    ("research", {}, RESEARCH, {"format": 1, "f1": 0}, set()),
    ("research", {}, "\\boxed{Bob}", {"format": 0, "f1": 0}, {MALFORMED}),
    ("r1_searcher", {}, R1_GOOD, {"format": 0, "answer": 1}, set()),
    ("r1_searcher", {}, f"<think>{R1_GOOD}", {"format": -2, "answer": 1}, {"think_closed_once", MALFORMED}),
    ("r1_searcher", {"preset": "stage1_paper"}, R1_ALONE, {"retrieval": 0, "format": 0.5}, set()),
    ("r1_searcher", {"preset": "stage1_paper"}, "Bob", {"retrieval": 0, "format": 0}, {"think_closed_once", "one_answer", MALFORMED}),
    ("r1_searcher", {"preset": "stage1_llama"}, R1_GOOD.replace("Bob <", "Eve <"), {"answer": -1, "format": 0.5}, set()),
    ("r1_searcher_pp", {}, PP, {"format": 0, "group": 0, "answer": 1}, set()),
    ("r1_searcher_pp", {}, "<internal>" + PP, {"format": -2, "group": 0}, {"tags_in_order", MALFORMED}),
    ("r1_searcher_pp", {"format_penalty": 0.0}, "Bob", {"format": 0, "answer": 0}, {"one_box", MALFORMED}),
    ("search_r1", {}, SEARCH_R1, {"format": 1, "em": 1}, set()),
    ("search_r1", {"preset": "em_format"}, "Bob", {"format": 0, "em": 0}, {MALFORMED}),
    ("search_o1", {}, BOXED, {"f1": 1}, set()),
    ("tool_calls", {}, CALLED + BOXED, {"malformed_call": 0, "unknown_ids": 0, "calls/open": 0, "repeated_opens": 0}, set()),
    ("tool_calls", {}, CALLED + "Eve", {"answer": 0, "format": 0}, {MALFORMED}),
    ("tool_calls", {}, CALL.format("find", "query") + FRAME + BOXED, {"malformed_call": 1}, {"malformed_call", MALFORMED}),
    *(
        ("tool_calls", {"unknown_id_penalty": fine}, CALLED + OPEN + FRAME + BOXED, {"unknown_ids": 1}, {"unknown_ids"})
        for fine in (0.0, 0.5)
    ),
    ("examples.own_reward.Thrifty", {}, SEARCH * 3 + ANSWER, {"extra_searches": -0.1}, {"extra_searches"}),
    ("examples.own_reward.Thrifty", {}, RESEARCH, {"extra_searches": 0.0}, set()),
]  # fmt: skip  # one a line


@pytest.mark.parametrize(("name", "options", "text", "has", "broken"), SCORED)
def test_a_rule_is_broken_where_the_method_says_so_and_a_zero_alone_is_no_fault(name, options, text, has, broken):
    method = load_method(name, **options)
    trajectory = method.read(text)
    golden = ["Eve"] if name in ("research", "examples.own_reward.Thrifty") else ["Bob"]
    figures = trajectory_metrics(method, trajectory, golden)
    components = {one.removeprefix(REWARD): value for one, value in figures.items() if one.startswith(REWARD)}
    assert {one: components[one] for one in has} == pytest.approx(has)
    assert broken_rules(components, figures["well_formed"]) == broken
    # a recording has the components alone: what they say is the same
    assert broken_rules(components) == broken


def test_every_method_is_among_the_examples():
    assert {name for name, *_ in SCORED} >= set(method_names())
    assert issubclass(Thrifty, Method)


NAMES = ("answer", "em", "f1", "judge", "retrieval", "group", "calls/open", "repeated_opens", "bonus")


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(min_value=0, max_value=9)))
def test_a_reward_that_is_small_or_not_earned_breaks_nothing(components):
    assert broken_rules(components) == broken_rules(components, 1.0) == set()
