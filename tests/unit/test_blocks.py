"""Blocks between markers are those that a lazy regular expression finds."""

import re

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
