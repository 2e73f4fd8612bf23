"""The evaluator over a model server and a retrieval service that are played by a transport."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from evaluation.__main__ import main
from evaluation.report import write_report
from evaluation.run import record
from evaluation.run import summarize as summarize_run
from evaluation.summary import summarize
from research_rl.errors import ConfigError, GenerationError
from research_rl.inference.openai_server import CompletionsServer
from research_rl.inference.protocol import TRUST, prompt_hash, read_protocol
from research_rl.methods.research import ReSearch
from research_rl.methods.search_r1 import SearchR1
from research_rl.recall import answer_recall
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.types import Budget
from tests.models import model_like, tokenizer_like

WEIGHTS = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"
TOKENIZER = tokenizer_like("qwen3")  # the model's, and some tokens more
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


def recorded(right: bool, searches: float = 1.0, kind: str = "a", seconds: float = 1.0):
    counted = {"searches": searches, "retrieval_rate": float(searches > 0)}
    metrics = {"em": float(right), "f1": float(right), **counted, "well_formed": 1.0, "score": 0.0}
    return {"metrics": metrics, "metadata": {"type": kind}, "sampled_tokens": 10, "generate_s": seconds, "search_s": 0.0}


def test_the_summary_tells_avg_pass_cost_and_types():
    questions = [[recorded(True, 1.0), recorded(False, 3.0)], [recorded(False, 2.0, "b"), recorded(False, 2.0, "b")]]
    figures = summarize_run(questions)
    assert (figures["n"], figures["samples"], figures["em"], figures["pass@2"], figures["searches"]) == (2, 2, 0.25, 0.5, 2.0)
    assert figures["cost"]["searches_when_right"] == 1.0
    assert figures["cost"]["searches_when_wrong"] == pytest.approx(7 / 3, abs=1e-3)
    assert figures["em_by_type"] == {"a": {"em": 0.5, "n": 1}, "b": {"em": 0.0, "n": 1}}
    low, high = figures["intervals"]["em"]
    assert low <= 0.25 <= high
    assert summarize_run([[recorded(False)]])["cost"]["searches_when_right"] is None


@pytest.fixture
def served(monkeypatch, tmp_path):
    """`evaluation run` over a model and a service that are played; returns the arguments and what was asked of the model."""
    asked: list[str] = []
    state = {"service": passages}

    def model(request):
        if request.url.path.endswith("/models"):  # tells no context
            return httpx.Response(404)
        asked.append(TOKENIZER.decode(json.loads(request.content)["prompt"]))
        return answers_in_two_turns(request)

    monkeypatch.setattr(
        "research_rl.inference.served.CompletionsServer",
        lambda url, name, temperature: CompletionsServer(url, name, temperature, httpx.MockTransport(model)),
    )
    monkeypatch.setattr(
        "research_rl.inference.served.RetrievalClient",
        lambda settings: RetrievalClient(
            RetrievalSettings(settings.url, deadline_s=0.3), transport=httpx.MockTransport(lambda r: state["service"](r))
        ),
    )
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    arguments = [
        "run",
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--model",
        "m",
        "--tokenizer",
        str(WEIGHTS),
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    return arguments, asked, state


def test_questions_are_rolled_out_and_measured_and_none_is_asked_twice(served, tmp_path, capsys):
    arguments, asked, _ = served
    assert main([*arguments, "--method", "research"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {name: figures[name] for name in ("em", "f1", "searches", "retrieval_rate", "well_formed", "score", "n")} == {
        "em": 1.0, "f1": 1.0, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": 1.0, "n": 5,
    }  # fmt: skip
    assert len(asked) == 10
    log = tmp_path / "o.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))  # as if killed after three
    assert main([*arguments, "--method", "research"]) == 0
    assert len(asked) == 14
    assert {row["id"] for row in map(json.loads, log.read_text().splitlines())} == {"0", "1", "2", "3", "4"}
    assert json.loads((tmp_path / "o.summary.json").read_text())["em"] == 1.0


def test_an_outage_ends_the_run_which_goes_on_when_it_is_over(served, tmp_path, capsys):
    arguments, _, state = served
    state["service"] = lambda request: httpx.Response(503)
    assert main([*arguments, "--method", "research", "--concurrency", "2"]) == 1
    assert "gave no answer" in capsys.readouterr().err
    assert not (tmp_path / "o.summary.json").exists()
    state["service"] = passages
    assert main([*arguments, "--method", "research"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 5


def test_rollouts_made_with_other_options_are_not_mixed(served, capsys):
    arguments, _, _ = served
    assert main([*arguments, "--method", "research"]) == 0
    assert main([*arguments, "--method", "research", "--temperature", "1"]) == 1
    assert "temperature was 0.0, now 1.0" in capsys.readouterr().err


def test_several_samples_need_a_temperature(served, capsys):
    arguments, _, _ = served
    assert main([*arguments, "--method", "research", "--samples", "4"]) == 1
    assert "are all the same" in capsys.readouterr().err
    assert main([*arguments, "--method", "research", "--samples", "4", "--temperature", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["pass@4"] == 1.0


def test_a_model_without_a_manifest_needs_a_method_by_hand(served, capsys):
    arguments, _, _ = served
    assert main(arguments) == 1
    assert "name the method, one of r1_searcher" in capsys.readouterr().err


def manifest(path, **changed):
    method = ReSearch()
    path.mkdir()
    known = {
        "method": "research", "method_options": {}, "prompt": method.prompt("$question"), "prompt_sha256": prompt_hash(method),
        "top_k": 2, "max_searches": 1, "max_turn_tokens": 80, "max_observation_tokens": None, "response_tokens": 200, "indexes": {},
    }  # fmt: skip
    (path / "research_rl.json").write_text(json.dumps(known | changed))
    return ["--manifest", str(path)]


def test_the_manifest_says_how_the_model_was_taught(served, tmp_path, capsys):
    arguments, asked, _ = served
    assert main([*arguments, *manifest(tmp_path / "m")]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "research"
    assert ReSearch().prompt("Who is 1?") in asked
    protocol = read_protocol(tmp_path / "m")
    assert protocol is not None
    assert protocol.budget == Budget(200, 80, 1, None, 2)


def test_the_manifests_bos_and_keywords_are_asked_with_unless_the_command_line_says_otherwise(served, tmp_path):
    arguments, asked, _ = served
    method = ReSearch(template="sys")
    arguments[arguments.index(str(WEIGHTS))] = str(model_like(tmp_path / "model", "qwen3"))
    known = manifest(
        tmp_path / "m", method_options={"template": "sys"}, prompt=method.prompt("$question"), prompt_sha256=prompt_hash(method),
        bos=True, chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert main([*arguments, *known]) == 0
    assert all(prompt.startswith("<bos><|im_start|>system") for prompt in asked)
    assert all("assistant\n<think>\n\n</think>\n\n" in prompt for prompt in asked)
    asked.clear()
    arguments[-1] = str(tmp_path / "other.jsonl")
    assert main([*arguments, *known, "--no-bos", "--chat-template-kwargs", "{}"]) == 0
    assert all(prompt.startswith("<|im_start|>system") and "assistant\n<think>\n\n" not in prompt for prompt in asked)


def test_a_manifest_that_does_not_tell_is_of_a_model_trained_without_a_bos(served, tmp_path):
    arguments, asked, _ = served
    arguments[arguments.index(str(WEIGHTS))] = str(model_like(tmp_path / "model", "gemma", begins=True))
    assert main([*arguments, *manifest(tmp_path / "m")]) == 0
    assert not any(prompt.startswith("<bos>") for prompt in asked)
    arguments[-1] = str(tmp_path / "other.jsonl")
    asked.clear()
    assert main([*arguments, "--method", "research"]) == 0
    assert all(prompt.startswith("<bos>") for prompt in asked)


def test_another_prompt_than_the_model_was_taught_is_refused(served, tmp_path, capsys):
    arguments, _, _ = served
    assert main([*arguments, *manifest(tmp_path / "m", prompt_sha256="0" * 64)]) == 1
    assert "differs from the one that the model was trained with" in capsys.readouterr().err
    (tmp_path / "m" / "research_rl.json").write_text("{}")
    assert main([*arguments, "--manifest", str(tmp_path / "m")]) == 1
    assert "is no manifest of research-rl" in capsys.readouterr().err


def test_a_strangers_manifest_neither_runs_code_nor_asks_servers(tmp_path, monkeypatch):
    monkeypatch.delenv(TRUST, raising=False)
    (tmp_path / "strangers_model.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, (what, changed) in enumerate([
        ("the code strangers_model.M", {"method": "strangers_model.M"}),
        ("the code strangers_model.Tool", {"method": "tool_calls", "method_options": {"tools": ["search", "strangers_model.Tool"]}}),
        ("the server {'url': 'http://127.0.0.1:1/mcp'}", {"method": "tool_calls", "method_options": {"mcp": {"url": "http://127.0.0.1:1/mcp"}}}),
    ]):  # fmt: skip
        manifest(tmp_path / str(number), **changed)
        with pytest.raises(ConfigError, match=re.escape(f"research_rl.json names {what}, to be used with your rights")):
            read_protocol(tmp_path / str(number))
    assert not (tmp_path / "it_ran").exists()
    monkeypatch.setenv(TRUST, "1")
    with pytest.raises(ConfigError, match="cannot be imported"):  # it has no M
        read_protocol(tmp_path / "0")
    assert (tmp_path / "it_ran").exists()


def test_a_prompt_file_that_is_gone_is_taken_from_the_manifest(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("Price: $$5. Q: $question\nA:")
    method = ReSearch(prompt_file=str(file))
    manifest(
        tmp_path / "m",
        method_options={"prompt_file": str(file)},
        prompt=method.prompt("$question"),
        prompt_sha256=prompt_hash(method),
    )
    file.unlink()
    protocol = read_protocol(tmp_path / "m")
    assert protocol is not None
    assert protocol.method.prompt("Who?") == "Price: $5. Q: Who?\nA:"


@pytest.mark.parametrize(
    ("kind", "template"), [(ReSearch, "sys"), (SearchR1, "chat")], ids=["a system message", "a user turn"]
)  # fmt: skip
def test_so_is_one_for_a_chat_model(tmp_path, kind, template):
    file = tmp_path / "p.txt"
    file.write_text("It costs $$5, {and more}: $question\n")
    options = {"template": template, "prompt_file": str(file)}
    method = kind(**options)
    told = {"prompt": method.prompt("$question"), "prompt_sha256": prompt_hash(method)}
    manifest(tmp_path / "m", method=kind.name, method_options=options, **told)
    file.unlink()
    protocol = read_protocol(tmp_path / "m")
    assert protocol is not None
    assert protocol.method.prompt("Who?") == method.prompt("Who?")


def test_a_configuration_file_says_what_the_command_line_leaves_out(served, tmp_path, capsys):
    arguments, _, _ = served
    values = dict(zip([name[2:] for name in arguments[1::2]], arguments[2::2], strict=True))
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({**values, "method": "research", "concurrency": 3, "method-options": {"template": "base"}}))
    assert main(["run", "--config", str(config)]) == 0
    config.write_text(json.dumps({**values, "metod": "research"}))
    assert main(["run", "--config", str(config)]) == 1
    assert "unknown keys ['metod']; valid: bos, chat_template_kwargs, concurrency" in capsys.readouterr().err
    assert main(["run", "--config", str(tmp_path / "none.yaml")]) == 1


def test_a_record_keeps_the_turns_and_what_they_cost():
    method = ReSearch()
    trajectory = method.read("<think>t</think><answer>\\boxed{Orla}</answer>", "Who?")
    kept = record(method, trajectory, QUESTIONS[0] | {"metadata": {"type": "t"}})
    assert kept["metrics"]["em"] == 1.0
    assert [turn["action"]["kind"] for turn in kept["turns"]] == ["Answer"]
    assert kept["metadata"] == {"type": "t"}


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
        assert await answer_recall(rows, client, 5) == [1, 1, 0]


def test_the_report_escapes_what_models_and_passages_say(tmp_path):
    turn = {"text": "<script>alert(1)</script>", "observation": "<img src=x>", "action": {"kind": "Search"}, "passages": []}
    metrics = {"em": 0.0, "f1": 0.0, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": 0.0}
    base = {
        "type": "<t>",
        "question": "q?",
        "golden_answers": ["a"],
        "answer": "<b>",
        "stop_reason": "answered",
        "turns": [turn],
        "metrics": metrics,
    }
    records = [{**base, "step": step, "validate": True, "split": split} for step in (0, 2) for split in ("test", "control")]
    records += [{**base, "step": step, "validate": False, "split": "train"} for step in (1, 2)]
    made = {"recipe": "recipes/<i>.yaml", "hardware": {"cores": 2}, "versions": {"verl": "0"}}
    rest = {"seed": 1, "seconds": {"training": 1.0}, **made}
    write_report(tmp_path / "r.html", {**summarize(records, 2), **rest}, records, 2)
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "recipes/&lt;i&gt;.yaml, seed 1" in page
    assert "&lt;script&gt;" in page
