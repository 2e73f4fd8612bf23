"""Tool calls as model families write them: read back, and broken in every way."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.tools.base import load_tools
from research_rl.tools.formats import FORMATS, elements, load_format
from tests.time_limit import seconds

SCHEMAS = {name: tool.parameters for name, tool in load_tools(["search", "open"]).items()}
TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
CALLS = st.one_of(
    st.tuples(st.just("search"), st.fixed_dictionaries({"query": TEXT})),
    st.tuples(st.just("open"), st.fixed_dictionaries({"id": TEXT, "page": st.integers()})),
)
TOGETHER = {"hermes": "\n", "qwen_coder": "\n", "llama3": "; "}
JUNK = ["<tool_call>", "</tool_call>", "{", "}", '"', "\\", "<function=", "</function>", "<parameter=", "</parameter>", ">",
        ";", "null", "[", "<|python_tag|>", "\x00", "é", "1e999", "name", ":", ","]  # fmt: skip


def xml_can_hold(arguments):
    return not any("</parameter>" in str(value) or "</function>" in str(value) for value in arguments.values())


@pytest.mark.parametrize("name", FORMATS)
@given(calls=st.lists(CALLS, min_size=1, max_size=4))
def test_calls_are_read_back_as_they_were_written(name, calls):
    if name == "qwen_coder" and not all(xml_can_hold(arguments) for _, arguments in calls):
        return  # its values are not quoted: a model cannot write such a text either
    written = TOGETHER[name].join(FORMATS[name].write(tool, arguments) for tool, arguments in calls)
    found = FORMATS[name].read(written, SCHEMAS)
    assert [(call.name, call.arguments, call.error) for call in found] == [(*call, "") for call in calls]


@pytest.mark.parametrize("name", ["hermes", "llama3"])
@pytest.mark.parametrize("query", ["</tool_call>", "<tool_call>", '"}', "; {", "}}", "\\boxed{"])
def test_what_stands_inside_a_json_text_closes_nothing(name, query):
    [call] = FORMATS[name].read(FORMATS[name].write("search", {"query": query}), SCHEMAS)
    assert (call.arguments, call.error) == ({"query": query}, "")


@pytest.mark.parametrize("name", FORMATS)
def test_two_thousand_mutated_calls_are_read_or_told_broken_and_never_raise(name):
    chance = random.Random(name)
    format_, verdicts = FORMATS[name], {"read": 0, "broken": 0, "none": 0}
    for _ in range(2_000):
        calls = [("search", {"query": "who was it"}), ("open", {"id": "a7", "page": 2})]
        text = TOGETHER[name].join(format_.write(*call) for call in chance.sample(calls, chance.randint(1, 2)))
        for _ in range(chance.randint(1, 3)):
            at, width = chance.randrange(len(text)), chance.choice([0, 1, 1, 5])
            text = text[:at] + chance.choice([*JUNK, ""]) + text[at + width :]
        found = format_.read(text, SCHEMAS)
        for call in found:
            assert isinstance(call.arguments, dict)
            assert bool(call.error) != bool(call.name)
        verdicts["none" if not found else "broken" if any(call.error for call in found) else "read"] += 1
    assert verdicts["broken"] > 100
    assert verdicts["read"] > 100


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("hermes", '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}', "</tool_call> is missing"),
        ("hermes", '<tool_call>\n{"name": "search", "arguments": "x"}\n</tool_call>', 'JSON object "arguments"'),
        ("hermes", "<tool_call>\nsearch(x)\n</tool_call>", "is not JSON"),
        ("hermes", f"<tool_call>{'[' * 100_000}</tool_call>", "is not JSON"),
        ("hermes", '<tool_call>["search"]</tool_call>', '"name"'),
        ("qwen_coder", "<tool_call>\nsearch x\n</tool_call>", "<function=NAME>"),
        ("qwen_coder", "<function=search>\n<parameter=query>\nx\n</parameter>", "</function> is missing"),
        ("qwen_coder", "<function=search>\nx\n</function>", "something besides"),
        ("llama3", '{"name": "search"}', 'JSON object "parameters"'),
        ("llama3", '{"name": "search", "parameters": {"query": "x"}} and more', "nothing but ;"),
        ("llama3", "<|python_tag|>search(x)", "one JSON object"),
        ("llama3", "<|python_tag|>", "no call after"),
    ],
)
def test_a_broken_call_says_why(name, text, why):
    assert why in FORMATS[name].read(text, SCHEMAS)[-1].error


def test_what_follows_a_broken_call_is_read():
    good = FORMATS["hermes"].write("search", {"query": "x"})
    broken, read = FORMATS["hermes"].read(f"<tool_call>\n{{oops\n</tool_call>\n{good}", SCHEMAS)
    assert broken.error
    assert (read.name, read.error) == ("search", "")


@given(st.lists(st.sampled_from(["<p=", "</p>", "<", ">", "\n", "x", "<p=x>"])).map("".join))
def test_elements_are_what_a_lazy_regular_expression_finds(text):
    matches = list(re.finditer(r"<p=([^>\n]*)>(.*?)(</p>|\Z)", text, re.DOTALL))
    assert elements(text, "p") == [(*match.span(), match[1], match[2], bool(match[3])) for match in matches]


@pytest.mark.parametrize("text", ["<function=", "<function=x\n", "<function=x>", "<parameter=", "<parameter=x>"])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("<function=search>", "</function>")])
def test_a_policy_that_repeats_a_piece_of_a_call_is_read_in_no_time(before, after, text):
    """Reading the rest of the text again at each piece, whose number is 50,000 here, would take minutes."""
    with seconds(10):
        FORMATS["qwen_coder"].read(before + text * 50_000 + after, SCHEMAS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["", "The answer is \\boxed{Paris}.", '{"a": 1}', "a < b; c > d"])
def test_a_message_without_a_call_has_none(name, text):
    assert FORMATS[name].read(text, SCHEMAS) == []


def test_a_text_where_the_schema_wants_a_number_is_told_by_the_tool():
    [call] = FORMATS["qwen_coder"].read(
        "<function=open>\n<parameter=id>\n7\n</parameter>\n<parameter=page>\ntwo\n</parameter>\n</function>", SCHEMAS
    )
    assert call.arguments == {"id": "7", "page": "two"}
    assert "page must be of type integer" in load_tools(["open"])["open"].wrong(call.arguments)


def test_an_unknown_format_names_the_valid_ones():
    with pytest.raises(ConfigError, match="valid: hermes, qwen_coder, llama3"):
        load_format("xml")


def test_schemas_are_json():
    assert json.loads(json.dumps(SCHEMAS)) == SCHEMAS
