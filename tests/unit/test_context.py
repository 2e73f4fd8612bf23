"""Budgets fitted to the context that a model's server allows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from evaluation.__main__ import main as evaluate
from research_rl.inference.context import served_context
from research_rl.inference.openai_server import CompletionsServer
from research_rl.inference.protocol import MANIFEST, prompt_hash
from research_rl.methods import load_method
from research_rl.retrieval import RetrievalClient
from research_rl.web import chat
from tests.unit.test_agent import TOKENIZER, WEIGHTS, agent, model, service
from tests.unit.test_chat import chat_with

CONTEXT = 1024


def with_context(asked: list[int]):
    """Play vLLM with ``--max-model-len 1024``: it tells its context and refuses what does not fit; `asked` gets prompt + response."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m", "max_model_len": CONTEXT}]})
        body = json.loads(request.content)
        if len(body["prompt"]) + body["max_tokens"] > CONTEXT:
            return httpx.Response(400, text=f"This model's maximum context length is {CONTEXT} tokens.")
        asked.append(len(body["prompt"]) + body["max_tokens"])
        return model(request)

    return answer


@pytest.fixture
def small(monkeypatch):
    """Agents and commands talk to a server with a context of 1,024 tokens; returns what was asked of it, in tokens with the prompt."""
    asked: list[int] = []
    for module in ("agent", "served"):
        monkeypatch.setattr(
            f"research_rl.inference.{module}.CompletionsServer",
            lambda *given: CompletionsServer(*given, transport=httpx.MockTransport(with_context(asked))),
        )
        monkeypatch.setattr(
            f"research_rl.inference.{module}.RetrievalClient",
            lambda settings: RetrievalClient(settings, transport=httpx.MockTransport(service)),
        )
    return asked


def test_a_model_named_by_hand_answers_over_a_server_with_a_short_context_and_it_is_said_once(small, caplog):
    one = agent()
    told = [one.answer("Who is it?"), one.answer("Who is it?")]
    assert [answered.answer for answered in told] == ["Orla", "Orla"]
    prompt = len(told[0].trajectory.prompt_ids)
    assert {answered.budget.response_tokens for answered in told} == {CONTEXT - prompt}
    assert max(small) == CONTEXT
    assert len(caplog.messages) == 1
    assert "allows 1,024 tokens for prompt and response together" in caplog.messages[0]
    assert f"(here {CONTEXT - prompt:,}), not 8,192" in caplog.messages[0]


def test_a_manifests_budget_is_fitted_too_and_a_smaller_one_is_left_alone(small, tmp_path, caplog):
    method = load_method("research")
    manifest = {
        "method": "research", "method_options": {}, "prompt": method.prompt("$question"), "prompt_sha256": prompt_hash(method),
        "response_tokens": 4096, "max_turn_tokens": None, "max_searches": 4, "max_observation_tokens": None, "top_k": 3,
    }  # fmt: skip
    for file in WEIGHTS.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    told = agent(tokenizer=str(tmp_path), method=None).answer("Who is it?")
    assert (told.answer, told.budget.searches) == ("Orla", 4)
    assert told.budget.response_tokens == CONTEXT - len(told.trajectory.prompt_ids)
    assert len(caplog.messages) == 1
    assert agent(response_tokens=300).answer("Who is it?").budget.response_tokens == 300
    assert len(caplog.messages) == 1


def test_a_server_that_does_not_tell_its_context_changes_nothing(small, monkeypatch, caplog):
    monkeypatch.setattr(
        "research_rl.inference.agent.CompletionsServer",
        lambda *given: CompletionsServer(*given, transport=httpx.MockTransport(model)),
    )
    assert agent().answer("Who is it?").budget.response_tokens == 8192
    assert not caplog.messages


def test_the_context_of_an_adapter_is_its_base_models_and_what_is_no_answer_tells_nothing():
    models = {"data": [{"id": "base", "max_model_len": 4096}, {"id": "adapter", "parent": "base", "max_model_len": None}]}
    assert [served_context(models, name) for name in ("base", "adapter", "other")] == [4096, 4096, None]
    assert [served_context(odd, "base") for odd in ({}, [], {"data": [{"id": "base"}]})] == [None, None, None]


def test_a_question_that_does_not_fit_is_told_and_the_chat_goes_on(small, monkeypatch):
    shown = chat_with(["who " * CONTEXT, "Who is it?"], monkeypatch)
    plain = " ".join(shown.split())
    assert "cannot be asked: its prompt has" in plain
    assert "allows 1,024 for prompt and response together" in plain
    assert "HTTP 400" not in plain
    assert shown.count("─ answer ─") == 1


def evaluation_of(questions: Path) -> list[str]:
    """Return the command that evaluates the served model on questions, without `--out`."""
    return ["run", "--questions", str(questions), "--model", "m", "--tokenizer", str(WEIGHTS), "--method", "research"]


def test_an_evaluation_records_that_the_budget_was_smaller_than_asked(small, tmp_path, capsys):
    rows = [{"id": str(n), "question": "Who is it?" + "?" * n, "golden_answers": ["Orla"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = evaluation_of(tmp_path / "q.jsonl")
    assert evaluate([*given, "--out", str(tmp_path / "o.jsonl")]) == 0
    figures = json.loads(capsys.readouterr().out)
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    left = {CONTEXT - len(TOKENIZER.encode(load_method("research").prompt(row["question"]))) for row in rows}
    assert {record["reduced_response_tokens"] for record in records} == left
    assert figures["reduced_budgets"] == {"rollouts": 3, "asked_response_tokens": 8192, "least_response_tokens": min(left)}
    assert (figures["em"], figures["last_run"]["reduced_budgets"]) == (1.0, 3)
    assert evaluate([*given, "--response-tokens", "400", "--out", str(tmp_path / "fits.jsonl")]) == 0
    assert "reduced_budgets" not in json.loads((tmp_path / "fits.summary.json").read_text())


def test_a_question_that_does_not_fit_ends_an_evaluation_with_an_error_that_names_it(small, tmp_path, capsys):
    row = {"id": "1", "question": "who " * CONTEXT, "golden_answers": ["Orla"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    given = evaluation_of(tmp_path / "q.jsonl")
    assert evaluate([*given, "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "the question 'who who" in (err := capsys.readouterr().err)
    assert "--max-model-len" in err


def test_a_log_that_is_complete_needs_no_server(small, tmp_path, monkeypatch):
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "question": "Who is it?", "golden_answers": ["Orla"]}) + "\n")
    given = [
        "run", "--questions", str(tmp_path / "q.jsonl"), "--model", "m", "--tokenizer", str(WEIGHTS), "--method", "research",
        "--out", str(tmp_path / "o.jsonl"),
    ]  # fmt: skip
    assert evaluate(given) == 0
    monkeypatch.setattr(CompletionsServer, "context", None)
    assert evaluate(given) == 0


def test_the_chat_takes_every_limit_that_evaluation_takes(monkeypatch):
    made = []
    monkeypatch.setattr(
        chat, "Chat", lambda agent, console: SimpleNamespace(run=lambda: made.append(agent) or asyncio.sleep(0))
    )
    limits = {"response-tokens": 300, "max-turn-tokens": 50, "max-searches": 2, "max-observation-tokens": 90, "top-k": 3}
    given = [text for name, value in limits.items() for text in (f"--{name}", str(value))]
    assert chat.main(["--model", "m", "--tokenizer", str(WEIGHTS), "--method", "research", *given]) == 0
    budget = made[0].budget
    assert (budget.response_tokens, budget.turn_tokens, budget.searches, budget.observation_tokens, budget.top_k) == (
        300,
        50,
        2,
        90,
        3,
    )
