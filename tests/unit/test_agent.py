"""`SearchAgent`: one question, one answer, over servers that a transport plays."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

import research_rl
from research_rl import SearchAgent
from research_rl.errors import ConfigError, GenerationError
from research_rl.inference.agent import first_model
from research_rl.inference.openai_server import CompletionsServer
from research_rl.retrieval import RetrievalClient
from tests.models import model_like

WEIGHTS = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"
TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)
TURNS = ["<think>t</think><search> who</search>", "<think>t</think><answer>\\boxed{Orla}</answer><|endoftext|>"]


def model(request: httpx.Request) -> httpx.Response:
    if request.url.path.endswith("/models"):  # tells no context
        return httpx.Response(404)
    body = json.loads(request.content)
    ids = TOKENIZER.encode(TURNS["<result>\n" in TOKENIZER.decode(body["prompt"])])
    if not body.get("stream"):
        return httpx.Response(200, json={"choices": [{"token_ids": ids}]})
    pieces = [{"choices": [{"token_ids": [token], "text": TOKENIZER.decode([token])}]} for token in ids]
    return httpx.Response(200, text="".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n")


def service(request: httpx.Request) -> httpx.Response:
    queries = json.loads(request.content)["query"]
    return httpx.Response(200, json=[[[{"id": "7", "contents": "Orla\nis her name"}]] * len(queries), [[1.0]] * len(queries)])


@pytest.fixture
def opened(monkeypatch):
    """Let agents talk to the transports; returns how many connections were opened, and how many closed."""
    counts = {"opened": 0, "closed": 0}

    class Server(CompletionsServer):
        def __init__(self, *arguments):
            counts["opened"] += 1
            super().__init__(*arguments, transport=httpx.MockTransport(model))

        async def close(self):
            counts["closed"] += 1
            await super().close()

    monkeypatch.setattr("research_rl.inference.agent.CompletionsServer", Server)
    monkeypatch.setattr(
        "research_rl.inference.agent.RetrievalClient",
        lambda settings: RetrievalClient(settings, transport=httpx.MockTransport(service)),
    )
    return counts


def agent(**more):
    given = {"model": "m", "tokenizer": str(WEIGHTS), "method": "research", **more}
    return SearchAgent("http://model/v1", "http://service", **given)


def test_a_question_gets_its_answer_with_searches_and_passages(opened):
    told = agent().answer("Who is it?")
    assert (told.answer, told.searches) == ("Orla", ["who"])
    assert [passage.id for passage in told.passages] == ["7"]
    assert told.trajectory.question == "Who is it?"
    assert opened == {"opened": 1, "closed": 1}


async def test_many_at_once_alone_or_over_shared_connections(opened):
    one = agent(top_k=1)
    assert [told.answer for told in await asyncio.gather(*(one.aanswer("Who?") for _ in range(5)))] == ["Orla"] * 5
    assert opened == {"opened": 5, "closed": 5}
    async with one:
        await asyncio.gather(*(one.aanswer("Who?") for _ in range(5)))
    assert opened == {"opened": 6, "closed": 6}


async def test_what_happens_is_told_as_it_happens_without_the_end_of_turn_and_the_answer_is_the_same(opened):
    events = []
    told = await agent().aanswer("Who?", events.append)
    assert told.trajectory.response_ids == (await agent().aanswer("Who?")).trajectory.response_ids
    kinds = [event.kind for event in events if event.kind != "text"]
    assert kinds == ["search", "found"]
    assert [event.text for event in events if event.kind == "search"] == ["who"]
    assert "".join(event.text for event in events if event.kind == "text") == "".join(TURNS).removesuffix("<|endoftext|>")
    assert told.trajectory.ended_with_eos  # the ids keep it
    assert len([event for event in events if event.kind == "text"]) > 10
    assert next(event for event in events if event.kind == "found").passages[0].id == "7"


@pytest.fixture
def gemma(tmp_path, monkeypatch):
    """A chat model whose turns end in another token than the tokenizer's own EOS; the played server says the same as ever."""
    directory = model_like(tmp_path / "gemma", "gemma")
    monkeypatch.setattr(sys.modules[__name__], "TOKENIZER", AutoTokenizer.from_pretrained(directory))
    monkeypatch.setattr(sys.modules[__name__], "TURNS", [TURNS[0], TURNS[1].replace("<|endoftext|>", "<end_of_turn>")])
    return directory


def test_an_answer_that_ends_in_another_eos_than_the_tokenizers_is_finished_and_scores(opened, gemma):
    asked = agent(tokenizer=str(gemma), method_options={"template": "sys"})
    trajectory = asked.answer("Who is it?").trajectory
    assert trajectory.ended_with_eos
    assert trajectory.turns[-1].text == TURNS[1].removesuffix("<end_of_turn>")
    assert asked.method.reward(trajectory, ["Orla"]).score == 1.0


def test_bos_and_keywords_of_the_chat_template_reach_the_prompt(opened, tmp_path):
    directory = model_like(tmp_path, "qwen3")
    given = {
        "tokenizer": str(directory),
        "method_options": {"template": "sys"},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    told = agent(bos=True, **given).answer("Who?")
    prompt = AutoTokenizer.from_pretrained(directory).decode(told.trajectory.prompt_ids)
    assert prompt.startswith("<bos><|im_start|>system")
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(404, text="no such model"), "HTTP 404: no such model"),
        (httpx.Response(200, text='data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
    ],
)
async def test_a_stream_that_fails_is_told(answer, message):
    server = CompletionsServer("http://model/v1", "m", transport=httpx.MockTransport(lambda request: answer))
    with pytest.raises(GenerationError, match=message):
        await server.stream([1], 5, (), lambda text: None)


async def test_where_a_loop_runs_the_asynchronous_call_is_named(opened):
    with pytest.raises(RuntimeError, match=r"await agent.aanswer"):
        agent().answer("Who?")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": None}, "name the method, one of r1_searcher"),
        ({"method": None, "method_options": {"template": "sys"}}, "need a method: name it"),
        ({"method": "reserch"}, "no method is called"),
        ({"topk": 3}, "valid: response_tokens"),
        ({"chat_template_kwargs": ["enable_thinking"]}, "takes keywords"),
        ({"bos": True}, "no BOS token"),
    ],
)
def test_what_cannot_be_is_told_at_once(more, message):
    with pytest.raises(ConfigError, match=message):
        agent(**more)


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(GenerationError, match=r"no model's name can be read from http://127.0.0.1:9/v1/models"):
        first_model("http://127.0.0.1:9/v1")


def test_the_package_names_it_and_nothing_else():
    assert research_rl.SearchAgent is SearchAgent
    with pytest.raises(AttributeError):
        _ = research_rl.SearchAgents
