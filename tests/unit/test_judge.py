"""The judge: a real HTTP server that speaks OpenAI's chat completions, caching, costs, unclear verdicts."""

from __future__ import annotations

import json

import pytest

from evaluation import judge as judging
from evaluation.__main__ import main
from research_rl.judge import CRITERIA, criterion, prompt, verdict
from tests.servers import free_port, json_server

ROWS = [
    {"question": "Who?", "golden_answers": ["Oslo", "Kristiania"], "answer": "the city of Oslo"},
    {"question": "What?", "golden_answers": ["x"], "answer": "y $money"},
    {"question": "What?", "golden_answers": ["x"], "answer": ""},
]


@pytest.fixture
def judge():
    """A chat server; yields its URL, what it was asked, and how it answers."""
    asked: list[str] = []
    state = {
        "say": lambda text: "True" if "Oslo" in text.split("predicted answer: ")[1] else "The answer is not right.\nFalse",
        "status": 200,
    }

    def answer(path, body):
        asked.append(body["messages"][0]["content"])
        if state["status"] != 200:
            return state["status"], {"error": {"message": "no such model"}}
        return 200, {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": state["say"](asked[-1])}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
        }  # fmt: skip

    with json_server(answer) as url:
        yield f"{url}/v1", asked, state


def arguments(tmp_path, url, *more):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["judge", str(source), "--out", str(tmp_path / "out.jsonl"), "--judge-url", url, "--judge-model", "m", *more]


def test_a_server_that_is_not_there_and_a_missing_key_are_told_before_any_prompt_is_sent(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judging, "_REACHED_S", 0.1)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert main(arguments(tmp_path, url)) == 1
    assert f"no judge at {url}: ConnectError" in capsys.readouterr().err
    assert main(arguments(tmp_path, "https://api.openai.com/v1")) == 1
    assert "set OPENAI_API_KEY, or give --judge-url" in capsys.readouterr().err


def test_predictions_are_judged_cached_and_paid_for_once(tmp_path, judge, capsys):
    url, asked, _ = judge
    assert main(arguments(tmp_path, url, "--price", "2", "10")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["n"], figures["judge"], figures["asked_now"]) == (3, 0.3333, 2)  # nothing to ask about an empty prediction
    assert (figures["tokens_in"], figures["tokens_out"], figures["cost"]) == (200, 10, 0.0005)
    assert [json.loads(line)["judge"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [True, False, False]
    cache = tmp_path / "out.cache.jsonl"
    cache.write_text(cache.read_text()[:-20])  # a kill cut the last line
    assert main(arguments(tmp_path, url)) == 0
    assert json.loads(capsys.readouterr().out)["asked_now"] == 1
    assert len(asked) == 3
    assert main(arguments(tmp_path, url)) == 0
    assert len(asked) == 3
    assert main(arguments(tmp_path, url, "--criterion", "research")) == 0  # another prompt
    assert len(asked) == 5


def test_the_judged_file_is_scored_like_any_other(tmp_path, judge, capsys):
    assert main(arguments(tmp_path, judge[0])) == 0
    capsys.readouterr()
    scored = [
        "score",
        str(tmp_path / "out.jsonl"),
        "--pred-field",
        "answer",
        "--gold-field",
        "golden_answers",
        "--judge-field",
        "judge",
        "--json",
    ]
    assert main(scored) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["judge"]["mean"] == 0.3333


def test_a_judge_without_a_verdict_ends_the_run_and_what_it_said_is_kept(tmp_path, judge, capsys):
    url, _, state = judge
    state["say"] = lambda text: "I would rather not say."
    assert main(arguments(tmp_path, url)) == 1
    assert "gave no verdict on 2 rows (the first: row 1" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "out.cache.jsonl").read_text().count("\n") == 2


def test_a_server_that_refuses_is_told(tmp_path, judge, capsys):
    url, _, state = judge
    state["status"] = 404
    assert main(arguments(tmp_path, url)) == 1
    assert f"the judge m at {url} refuses with HTTP 404: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("True", True),
        (" false.", False),
        ("It is incorrect in part, but\ncorrect", True),
        ("**Incorrect**", False),
        ("maybe", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(text, found):
    assert verdict(text) is found


@pytest.mark.parametrize("name", CRITERIA)
def test_the_prompt_shows_question_answers_and_prediction(name):
    text = prompt(criterion(name), "Who $is it?", ["a", "b"], "c")
    assert all(part in text for part in ('"Who $is it?"', '["a", "b"]', '"c"'))
    assert "$" not in text.replace("$is", "")
