"""An agent that is none of ours: the `openai` client, and the loop of docs/tool_calls.md, against a real vLLM server."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
import openai

from research_rl.codec import load_codec
from research_rl.methods.base import load_method
from tests.small_vllm import copy_model, serving

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "research_rl" / "tools" / "chatml.jinja"
PAGE = ROOT / "docs" / "tool_calls.md"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vLLM for CPUs is for Linux")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Yield a client, and the folder of the model that is served as `m`."""
    folder = copy_model(
        tmp_path_factory.mktemp("model")
    )  # has never seen a tool: what it says is noise, and what is asked for counts
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    options = ["--max-model-len", "1024", "--max-num-seqs", "4", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving(folder, *options) as url:
        yield openai.OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0), folder


def test_the_server_shows_the_model_the_prompt_that_it_was_trained_with(served):
    client, folder = served
    method = load_method("tool_calls", tools=["search"])
    asked = method.prompt("Where was Orla born?")
    reply = client.chat.completions.create(
        model="m", messages=asked["messages"], tools=asked["tools"], max_tokens=4, extra_body={"return_token_ids": True}
    )
    assert reply.prompt_token_ids == load_codec(folder).encode_prompt(asked)


def test_a_call_and_its_result_are_taken_back(served):
    client, _ = served
    asked = load_method("tool_calls", tools=["search"], prompt="Search.").prompt("Where was Orla born?")
    called = {"id": "call1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Orla"}'}}
    result = {"role": "tool", "tool_call_id": "call1", "content": "[1] Orla was born in Oslo."}
    messages = [*asked["messages"], {"role": "assistant", "tool_calls": [called]}, result]
    first, second = (
        client.chat.completions.create(model="m", messages=shown, tools=asked["tools"], max_tokens=4).usage.prompt_tokens
        for shown in (asked["messages"], messages)
    )
    assert second > first + 20


def test_the_loop_of_the_documentation_runs(served):
    client, _ = served
    names: dict = {}
    found = re.search(r"<!-- loop -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    exec(found.group(1), names)
    asked = load_method("tool_calls", tools=["search"], prompt="Search.").prompt("Where was Orla born?")
    messages = names["converse"](
        client, "m", asked["messages"], asked["tools"], lambda name, arguments: json.dumps(arguments), 1
    )
    assert [one["role"] for one in messages[:3]] == ["system", "user", "assistant"]
