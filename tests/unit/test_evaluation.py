"""The evaluator over a model server and a retrieval service that are played by a transport."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from evaluation.openai_server import CompletionsServer
from evaluation.report import write_report
from evaluation.run import answer_recall, evaluate
from evaluation.summary import mean_metrics, summarize
from research_rl.errors import ConfigError, GenerationError
from research_rl.methods.research import ReSearch
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import HFCodec
from research_rl.types import Budget

TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "quickstart" / "start_model" / "weights")
TURNS = ["<think>t</think><search> who</search>", "<think>t</think><answer>\\boxed{Orla}</answer><|endoftext|>"]
QUESTIONS = [{"id": str(i), "question": f"Who is {i}?", "golden_answers": ["Orla"]} for i in range(5)]


def model_server(handler) -> CompletionsServer:
    return CompletionsServer("http://model/v1", "m", transport=httpx.MockTransport(handler))


def answers_in_two_turns(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    assert body["stop"] == ["</search>"]
    assert body["return_token_ids"] is True
    searched = "<result>\n" in TOKENIZER.decode(body["prompt"])
    return httpx.Response(200, json={"choices": [{"token_ids": TOKENIZER.encode(TURNS[searched])}]})


def passages(request: httpx.Request) -> httpx.Response:
    queries = json.loads(request.content)["query"]
    return httpx.Response(200, json=[[[{"id": "1", "contents": "Orla"}]] * len(queries), [[1.0]] * len(queries)])


def retrieval(handler) -> RetrievalClient:
    return RetrievalClient(RetrievalSettings("http://service", deadline_s=0.3), transport=httpx.MockTransport(handler))


async def test_questions_are_rolled_out_and_measured_in_order():
    server = model_server(answers_in_two_turns)
    async with retrieval(passages) as client:
        records = await evaluate(ReSearch(), HFCodec(TOKENIZER), QUESTIONS, Budget(200), server.generate, client, concurrency=2)
    assert [record["id"] for record in records] == ["0", "1", "2", "3", "4"]
    assert mean_metrics(records) == {"em": 1.0, "f1": 1.0, "searches": 1.0, "well_formed": 1.0, "score": 1.0, "n": 5}


async def test_an_outage_is_counted_apart_and_scored_nowhere():
    server = model_server(answers_in_two_turns)
    async with retrieval(lambda request: httpx.Response(503)) as client:
        (record,) = await evaluate(ReSearch(), HFCodec(TOKENIZER), QUESTIONS[:1], Budget(200), server.generate, client)
    assert record["stop_reason"] == "retrieval_failed"
    assert "metrics" not in record


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx.Response(200, json={"choices": [{"text": "hi"}]}), ConfigError, "no token_ids"),
        (httpx.Response(404, text="no such model"), GenerationError, "HTTP 404: no such model"),
    ],
)
async def test_a_server_that_cannot_do_it_is_told(answer, error, says):
    with pytest.raises(error, match=says):
        await model_server(lambda request: answer).generate([1], 5, ())


async def test_answer_recall_counts_whole_words():
    rows = [*QUESTIONS[:2], {"id": "x", "question": "q", "golden_answers": ["Orl"]}]
    async with retrieval(passages) as client:
        assert await answer_recall(rows, client, 5) == [True, True, False]


def test_the_report_escapes_what_models_and_passages_say(tmp_path):
    turn = {"text": "<script>alert(1)</script>", "observation": "<img src=x>", "action": {"kind": "Search"}, "passages": []}
    metrics = {"em": 0.0, "f1": 0.0, "searches": 1.0, "well_formed": 1.0, "score": 0.0}
    base = {
        "type": "<t>",
        "question": "q?",
        "golden_answers": ["a"],
        "answer": "<b>",
        "stop_reason": "answered",
        "turns": [turn],
        "metrics": metrics,
    }
    records = [{**base, "step": step, "split": split} for step in (0, 2) for split in ("test", "control")]
    records += [{**base, "step": step, "split": "train"} for step in (1, 2)]
    rest = {"seed": 1, "seconds": {"training": 1.0}, "hardware": {"cores": 2}, "versions": {"verl": "0"}}
    write_report(tmp_path / "r.html", {**summarize(records, 2), **rest}, records, 2)
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
