"""Rollouts over a real vLLM server: what it does with special tokens, and with a budget that its context does not allow."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from research_rl.errors import GenerationError
from research_rl.inference.agent import SearchAgent
from research_rl.inference.openai_server import CompletionsServer
from tests.servers import json_server
from tests.small_vllm import copy_model, serving

ROOT = Path(__file__).parents[2]
METHOD = {"method": "research", "method_options": {"prompt_file": str(ROOT / "recipes" / "quickstart" / "prompt.txt")}}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vLLM for CPUs is for Linux")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The starting model, to whose tokenizer `</search>` is a special token, with a context of 512; yields its URL and folder."""
    folder = copy_model(tmp_path_factory.mktemp("model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] |= token["content"] == "</search>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with serving(folder, "--max-model-len", "512", "--max-num-seqs", "8") as url:
        yield url, folder


@pytest.fixture
def service():
    """A retrieval service that finds one passage for every query."""
    found = [{"id": "1", "contents": "Orla\nOrla was born in Oslo."}]
    with json_server(lambda path, body: (200, [[found] * len(body["query"]), [[1.0]] * len(body["query"])])) as url:
        yield url


def test_a_turn_ends_at_a_stop_string_that_is_a_special_token_and_the_reader_sees_no_end_of_turn(served, service):
    url, folder = served
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "</search>" not in tokenizer.decode(tokenizer.encode("a</search>"), skip_special_tokens=True)
    events = []
    agent = SearchAgent(url, service, model="m", tokenizer=str(folder), searches=4, **METHOD)
    told = asyncio.run(agent.aanswer("Where was Orla born?", events.append))
    assert told.searches
    assert all(turn.text.endswith("</search>") for turn in told.trajectory.turns if turn.observation)
    shown = "".join(event.text for event in events if event.kind == "text")
    assert "</search>" in shown
    assert told.trajectory.ended_with_eos
    assert "<|endoftext|>" not in shown
    assert told.trajectory.policy_text == shown


def test_a_model_named_by_hand_answers_within_the_servers_context(served, service):
    url, folder = served
    agent = SearchAgent(url, service, model="m", tokenizer=str(folder), searches=4, **METHOD)
    told = agent.answer("Where was Orla born?")
    assert told.budget.response_tokens == 512 - len(told.trajectory.prompt_ids)
    with pytest.raises(GenerationError, match=r"its prompt has [\d,]+ tokens, and the model's server allows 512"):
        agent.answer("Orla " * 500)


async def test_the_server_takes_exactly_what_its_context_allows(served):
    url, _ = served
    server = CompletionsServer(url, "m")
    assert await server.context() == 512
    assert (await server.generate([5] * 500, 12, ())).token_ids
    with pytest.raises(GenerationError, match="HTTP 400"):
        await server.generate([5] * 500, 13, ())
    await server.close()
