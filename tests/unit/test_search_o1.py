"""Search-o1-style prompting."""

from __future__ import annotations

import pytest

from research_rl.errors import ConfigError
from research_rl.methods import load_method
from research_rl.methods.search_o1 import BEGIN_QUERY, BEGIN_RESULT, END_QUERY, SearchO1
from research_rl.types import Answer, Invalid, Passage, Search

METHOD = SearchO1()
SHOWN = METHOD.render([[Passage("1", "A\nOslo lies in Norway.")]])


def test_it_is_found_by_its_name_and_asks_in_a_chat_or_in_plain_text():
    assert isinstance(load_method("search_o1"), SearchO1)
    assert METHOD.prompt("Who?")[0]["content"].endswith("Question: Who?")
    assert SearchO1(template="base").prompt("Who?").endswith("Question: Who?\n")
    with pytest.raises(ConfigError, match="valid: chat, base"):
        SearchO1(template="sys")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (f"I look. {BEGIN_QUERY} capital of Norway {END_QUERY}", Search("capital of Norway")),
        (f"{BEGIN_QUERY}  {END_QUERY}", Invalid("empty query")),
        ("So \\boxed{x}, no, \\boxed{ \\text{Oslo} }", Answer("\\text{Oslo}")),
        ("I do not know.", Invalid("neither a query nor a boxed answer")),
        (f"A box \\boxed{{early}} and {BEGIN_QUERY} more {END_QUERY}", Search("more")),
    ],
)
def test_a_turn_is_a_search_or_a_boxed_answer(text, action):
    assert METHOD.parse(text) == action


def test_a_recorded_response_is_read_and_its_passages_do_not_answer():
    trap = METHOD.render([[Passage("1", "A\n\\boxed{Bergen}")]])
    told = METHOD.read(f"{BEGIN_QUERY} q {END_QUERY}{trap}So it is \\boxed{{Oslo}}.")
    assert (METHOD.answer(told), told.searches) == ("Oslo", ["q"])
    assert METHOD.well_formed(told)
    assert METHOD.reward(told, ["Oslo"]).score == 1.0
    silent = METHOD.read(f"{BEGIN_QUERY} q {END_QUERY}{SHOWN}I give up.")
    assert (METHOD.answer(silent), METHOD.reward(silent, ["Oslo"]).score) == (None, 0.0)
    assert BEGIN_RESULT in SHOWN
