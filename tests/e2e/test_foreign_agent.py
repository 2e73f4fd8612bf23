"""An agent that is none of ours: the `openai` client, and the loop of docs/tool_calls.md, with a real vLLM server and a real service."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
import httpx
import openai
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quickstart.stand_in import teach
from rag_serving.indexing import build_index
from rag_serving.retrievers import load_index
from research_rl.codec import load_codec
from research_rl.inference.agent import SearchAgent
from research_rl.methods import load_method
from research_rl.types import Passage
from tests.servers import in_thread
from tests.small_vllm import serving
from tests.tool_families import tokenizer_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tool_calls.md"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vLLM for CPUs is for Linux")]


QUESTION, METHOD = "Where was Orla born?", load_method("tool_calls", tools=["search"], prompt="Search.")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Yield the URL of a retrieval service."""
    folder = tmp_path_factory.mktemp("service")
    texts = ["Orla Venn\nOrla was born in Oslo.", "Nora Kaal\nNora was born in Bergen.", "Oslo\nOslo is a city."]
    rows = [{"id": f"p{number}", "contents": text} for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(folder / "corpus.jsonl", folder / "index")
    with in_thread(load_index(folder / "index")) as url:
        yield url


def search(service: str, query: str) -> str:
    """Return what the tool returns, in the form of the training."""
    told = httpx.post(f"{service}/v1/search", json={"queries": [query], "top_k": 1}).raise_for_status().json()
    return METHOD.render([[Passage(hit["id"], hit["contents"]) for hit in told["results"][0]]])


def small_model(folder: Path) -> Path:
    """Write a small random model that reads and writes bytes, with our chat template for models without tools."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, service):
    """Yield a client, the folder of the model that is served as `m`, and its URL. It knows one rollout by heart, as tokens."""
    folder = small_model(tmp_path_factory.mktemp("model"))
    codec = load_codec(folder)
    texts = [
        (METHOD.write_search("", "Orla born"), True),
        (codec.tool_results([search(service, "Orla born")]), False),
        (METHOD.write_answer("", "Oslo"), True),
    ]
    segments = [{"text": text, "learn": learn} for text, learn in texts]
    teach(folder, codec, [{"prompt": json.dumps(METHOD.prompt(QUESTION)), "prefill": "", "segments": segments}])
    options = ["--max-model-len", "3072", "--max-num-seqs", "4", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving(folder, *options) as url:
        yield openai.OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0), folder, url


def test_the_server_shows_the_model_the_prompt_that_it_was_trained_with(served):
    client, folder, _ = served
    method = load_method("tool_calls", tools=["search"])
    asked = method.prompt("Where was Orla born?")
    reply = client.chat.completions.create(
        model="m", messages=asked["messages"], tools=asked["tools"], max_tokens=4, extra_body={"return_token_ids": True}
    )
    assert reply.prompt_token_ids == load_codec(folder).encode_prompt(asked)


def test_a_call_and_its_result_are_taken_back(served):
    client, _, _ = served
    asked = load_method("tool_calls", tools=["search"], prompt="Search.").prompt("Where was Orla born?")
    called = {"id": "call1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Orla"}'}}
    result = {"role": "tool", "tool_call_id": "call1", "content": "[1] Orla was born in Oslo."}
    messages = [*asked["messages"], {"role": "assistant", "tool_calls": [called]}, result]
    first, second = (
        client.chat.completions.create(model="m", messages=shown, tools=asked["tools"], max_tokens=4).usage.prompt_tokens
        for shown in (asked["messages"], messages)
    )
    assert second > first + 20


def test_the_loop_of_the_documentation_asks_the_service_what_a_trained_model_calls_for_and_ends_with_its_answer(
    served, service
):
    client, _, _ = served
    names: dict = {}
    found = re.search(r"<!-- loop -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    exec(found.group(1), names)
    asked, calls = METHOD.prompt(QUESTION), []

    def call(name, arguments):
        calls.append((name, arguments))
        return search(service, arguments["query"])

    messages = names["converse"](client, "m", asked["messages"], asked["tools"], call)
    assert calls == [("search", {"query": "Orla born"})]
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[3]["content"] == "[p0] Orla Venn\nOrla was born in Oslo."
    trajectory = METHOD.read_messages(messages)
    assert METHOD.answer(trajectory) == "Oslo"
    assert METHOD.reward(trajectory, ["Oslo"]).score == 1.0


def test_our_own_agent_asks_the_same_model_in_tokens_and_tells_of_the_same_search(served, service):
    _, folder, url = served
    options = {"tools": ["search"], "prompt": "Search."}
    agent = SearchAgent(url, service, model="m", tokenizer=str(folder), method="tool_calls", method_options=options, top_k=1)
    told = []

    async def ask():
        async with agent:
            return await agent.aanswer(QUESTION, told.append)

    found = asyncio.run(ask())
    assert found.answer == "Oslo"
    assert [event.text for event in told if event.kind == "search"] == ["Orla born"]
    assert [passage.id for event in told for passage in event.passages] == ["p0"]
    assert "".join(event.text for event in told if event.kind == "text").endswith("\\boxed{Oslo}")
