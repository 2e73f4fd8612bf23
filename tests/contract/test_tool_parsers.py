"""Well-formed tool calls are read as vLLM's own parsers read them: what a server would call, the rollout calls."""

from __future__ import annotations

import json
import logging
import random

import pytest

from research_rl.tools.base import load_tools
from research_rl.tools.formats import FORMATS
from tests.tool_families import tokenizer_of

pytest.importorskip("vllm")
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

SCHEMAS = {name: tool.parameters for name, tool in load_tools(["search", "open"]).items()}
WORDS = ["Curie", "é€", '"', "\\", "{}", "{", "]", "\n", "<b>", "&", "'", ";", "1867", "null", "%s"]
OF = {
    "hermes": ("hermes", "qwen2.5", "\n"),
    "llama3": ("llama3_json", "llama3", "; "),
    "qwen_coder": ("qwen3_coder", "qwen3-coder", "\n"),
}


def called(chance):
    words = " ".join(chance.choices(WORDS, k=chance.randint(1, 6)))
    return ("search", {"query": words}) if chance.random() < 0.6 else ("open", {"id": words, "page": chance.randint(1, 99)})


@pytest.mark.parametrize("name", OF)
def test_well_formed_calls_are_read_as_vllms_parser_reads_them(name):
    parser_name, family, between = OF[name]
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    parser = ToolParserManager.get_tool_parser(parser_name)(tokenizer_of(family))
    tools = [tool.schema() for tool in load_tools(["search", "open"]).values()]
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="m", tools=tools)
    chance = random.Random(name)
    for _ in range(500):
        calls = [called(chance) for _ in range(chance.randint(1, 3))]
        text = between.join(FORMATS[name].write(*call) for call in calls)
        if name != "llama3":
            text = chance.choice(["", "I look it up.\n"]) + text
        theirs = parser.extract_tool_calls(text, request)
        assert theirs.tools_called
        found = [(call.function.name, json.loads(call.function.arguments)) for call in theirs.tool_calls]
        assert found == calls == [(call.name, call.arguments) for call in FORMATS[name].read(text, SCHEMAS)]


def test_a_tag_inside_an_argument_is_where_vllms_hermes_parser_differs_and_finds_no_call():
    parser = ToolParserManager.get_tool_parser("hermes")(tokenizer_of("qwen2.5"))
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="m")
    text = FORMATS["hermes"].write("search", {"query": "what is </tool_call>?"})
    assert not parser.extract_tool_calls(text, request).tools_called
    assert [call.arguments for call in FORMATS["hermes"].read(text, SCHEMAS)] == [{"query": "what is </tool_call>?"}]


@pytest.mark.parametrize("name", OF)
def test_where_neither_finds_a_call_the_message_is_an_answer(name):
    parser_name, family, _ = OF[name]
    parser = ToolParserManager.get_tool_parser(parser_name)(tokenizer_of(family))
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="m")
    for text in ("The answer is Paris.", "\\boxed{Paris}", ""):
        assert not parser.extract_tool_calls(text, request).tools_called
        assert FORMATS[name].read(text, SCHEMAS) == []
