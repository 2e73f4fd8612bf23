"""`research-rl export`: what is given away is whole, says how it is asked, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research_rl.cli import main
from research_rl.inference.protocol import MANIFEST, prompt_hash, read_protocol
from research_rl.methods import load_method, method_defaults, method_names

METHOD = load_method("r1_searcher_pp")
PROTOCOL = {
    "research_rl": "0.1.0", "method": "r1_searcher_pp", "method_options": {"eta": 1.0}, "prompt": METHOD.prompt("$question"),
    "prompt_sha256": prompt_hash(METHOD), "prefill": "", "bos": None, "chat_template_kwargs": {}, "tags": list(METHOD.tags),
    "stop": list(METHOD.stop), "top_k": 5, "max_searches": None, "max_turn_tokens": 512, "max_observation_tokens": 1024,
    "response_tokens": 8192, "indexes": {"http://10.0.0.7:8000": "6e5087f00f08e38d"}, "stage": "answer", "step": 40,
    "adv_estimator": "grpo", "model": "/home/somebody/runs/sft/checkpoints/global_step_68/huggingface",
}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    model = tmp_path / "run" / "checkpoints" / "global_step_40" / "actor" / "huggingface"
    model.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model.parent.parent / MANIFEST).write_text(json.dumps(PROTOCOL))
    (model.parent / "optimizer.pt").write_bytes(b"large")
    (tmp_path / "run" / "model").symlink_to(model)
    return tmp_path / "run"


@pytest.mark.parametrize("where", ["", "checkpoints/global_step_40", "checkpoints/global_step_40/actor", "model"])
def test_a_run_a_checkpoint_or_a_model_becomes_a_folder_with_its_protocol_and_nothing_of_the_training(run, where, tmp_path):
    assert main(["export", str(run / where), "--out", str(tmp_path / "out")]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors", MANIFEST, "README.md"}
    protocol = read_protocol(tmp_path / "out")
    assert protocol is not None
    assert protocol.method.name == "r1_searcher_pp"


def test_the_card_says_how_it_is_asked_and_what_was_measured_and_no_path_or_address_of_the_machine(run, tmp_path):
    summary = {"n": 500, "em": 0.266, "f1": 0.3115, "searches": 1.0, "intervals": {"em": [0.228, 0.304]}}
    data = {"dataset": "nq", "split": "train", "questions": 4727, "parts": [{"path": "/home/somebody/x"}]}
    (tmp_path / "nq.summary.json").write_text(json.dumps(summary))
    (tmp_path / "train.card.json").write_text(json.dumps(data))
    options = ["--measured", str(tmp_path / "nq.summary.json"), "--data", str(tmp_path / "train.card.json")]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--name", "lab/agent", *options]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| nq.summary.json | 500 | 0.266 [0.228, 0.304] | 0.311 | 1.000 |" in card
    assert "train.card.json: 4727 questions" in card
    assert 'options `{"eta": 1.0}`' in card
    assert "stage answer, 40 steps" in card
    assert "vllm serve lab/agent" in card
    assert "user: $question" in card
    assert "6e5087f00f08e38d" in card
    assert "somebody" not in card
    assert "10.0.0.7" not in card


def test_the_card_of_a_model_that_calls_tools_has_its_messages_and_its_tools(run, tmp_path):
    method = load_method("tool_calls")
    of_tools = {
        "method": "tool_calls",
        "method_options": {},
        "prompt": method.prompt("$question"),
        "prompt_sha256": prompt_hash(method),
    }
    (run / "checkpoints" / "global_step_40" / MANIFEST).write_text(json.dumps(PROTOCOL | of_tools))
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "system: Answer the question with the help of the tools." in card
    assert "user: $question" in card
    assert 'tool: {"type": "function", "function": {"name": "search"' in card
    protocol = read_protocol(tmp_path / "out")
    assert protocol is not None
    assert protocol.method.name == "tool_calls"


def test_a_model_that_calls_tools_keeps_its_prompt_when_the_file_of_the_training_is_gone(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Look it up; it costs $$5.")
    options = {"answer": "tag", "prompt_file": str(file)}
    method = load_method("tool_calls", **options)
    told = {
        "method": "tool_calls",
        "method_options": options,
        "prompt": method.prompt("$question"),
        "prompt_sha256": prompt_hash(method),
    }
    (tmp_path / MANIFEST).write_text(json.dumps(PROTOCOL | told))
    file.unlink()
    protocol = read_protocol(tmp_path)
    assert protocol is not None
    assert protocol.method.prompt("Where?") == method.prompt("Where?")


def test_a_model_is_asked_as_it_was_trained_though_a_later_version_has_other_defaults(tmp_path):
    method = load_method("tool_calls", format="llama3", answer="plain")
    told = {
        "method": "tool_calls", "method_options": {"answer": "plain"},
        "method_defaults": method_defaults("tool_calls") | {"format": "llama3"},
        "prompt": method.prompt("$question"), "prompt_sha256": prompt_hash(method),
    }  # fmt: skip
    (tmp_path / MANIFEST).write_text(json.dumps(PROTOCOL | told))
    protocol = read_protocol(tmp_path)
    assert protocol is not None
    assert protocol.method.tags == method.tags
    assert protocol.method.write_answer("", "Paris") == "Paris"


@pytest.mark.parametrize("name", method_names())
def test_the_defaults_of_a_method_given_explicitly_make_the_same_method(name):
    given = load_method(name, **method_defaults(name))
    assert prompt_hash(given) == prompt_hash(load_method(name))
    assert (given.tags, given.stop) == (load_method(name).tags, load_method(name).stop)


def test_what_cannot_be_exported_is_told_and_leaves_nothing(run, tmp_path, capsys):
    def told(*arguments: str) -> str:
        assert main(["export", *arguments]) == 1
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "no directory" in told(str(tmp_path / "nowhere"), "--out", str(out))
    (tmp_path / "empty").mkdir()
    assert "holds no model" in told(str(tmp_path / "empty"), "--out", str(out))
    (tmp_path / "bad.json").write_text("[1]")
    assert "cannot be used" in told(str(run), "--out", str(out), "--measured", str(tmp_path / "bad.json"))
    assert "exists" in told(str(run), "--out", str(run))
    (run / "checkpoints" / "global_step_40" / MANIFEST).unlink()
    assert f"no {MANIFEST}" in told(str(run), "--out", str(out))
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_model_whose_prompt_is_not_the_one_it_was_trained_with_is_not_given_away(run, tmp_path, capsys):
    manifest = run / "checkpoints" / "global_step_40" / MANIFEST
    manifest.write_text(json.dumps(PROTOCOL | {"prompt_sha256": "0" * 64}))
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 1
    assert "differs from the one that the model was trained with" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))
