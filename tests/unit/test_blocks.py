"""Blocks between markers are those that a lazy regular expression finds; unclosed markers cost no more than their length."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.blocks import blocks, contents, without
from research_rl.methods import load_method
from research_rl.types import Answer, Invalid, Search

PIECES = st.lists(st.sampled_from(["<a>", "</a>", "<search>", "</search>", "<answer>", "</answer>", "x", "<", "\n", " "]))
TEXTS = PIECES.map("".join)


@given(TEXTS)
def test_blocks_are_what_a_lazy_regular_expression_finds(text):
    pattern = re.compile("<a>(.*?)</a>", re.DOTALL)
    assert list(blocks(text, "<a>", "</a>")) == [match.span() for match in pattern.finditer(text)]
    assert contents(text, "<a>", "</a>") == pattern.findall(text)
    assert without(text, "<a>", "</a>") == pattern.sub("", text)


@given(TEXTS)
def test_search_r1_acts_on_the_first_complete_block(text):
    found = re.search(r"<(search|answer)>(.*?)</\1>", text, re.DOTALL)
    kind = {"search": Search, "answer": Answer}[found[1]] if found and (found[2].strip() or found[1] == "answer") else Invalid
    action = load_method("search_r1").parse(text)
    assert isinstance(action, kind)
    assert getattr(action, "text", getattr(action, "query", "")) == (found[2].strip() if found and kind is not Invalid else "")


@pytest.mark.parametrize(
    ("method", "marker"),
    [
        ("search_r1", "<search>"),
        ("search_r1", "<answer>"),
        ("search_o1", "<|begin_search_query|>"),
        ("r1_searcher", "<|begin_of_documents|>"),
        ("r1_searcher_pp", "<external>"),
    ],
)
def test_a_policy_that_repeats_an_opening_marker_is_parsed_in_linear_time(method, marker):
    """Counted, not timed: at each search the text that is left is read to its end at most once."""
    read = []

    class Counting(str):
        def find(self, *arguments):
            read.append(arguments)
            return str.find(self, *arguments)

    of = load_method(method)
    of.parse(Counting(marker * 2000))
    assert len(read) <= 4
