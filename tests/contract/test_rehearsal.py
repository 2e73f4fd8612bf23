"""A rehearsal trains the recipe that will run on GPUs: a small model of its family, other sizes, another device, and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpus import MODELS, RECIPES
from quickstart import rehearsal
from quickstart.rehearsal import STAND_IN, main, overrides
from quickstart.rehearsed import show
from quickstart.stand_in import stand_in, teach
from research_rl.codec import encode_row, load_codec
from research_rl.errors import ConfigError
from research_rl.verl_plugin.doctor.compose import compositions
from research_rl.verl_plugin.doctor.examine import RECIPE, examine
from research_rl.verl_plugin.doctor.setup import Setup
from tests.models import family_like

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# what a rehearsal may change: the device, the sizes, the model, the questions, what is logged and when
MAY_CHANGE = {
    "data": {
        "train_files",
        "val_files",
        "train_batch_size",
        "val_max_samples",
        "max_prompt_length",
        "max_response_length",
        "seed",
    }
    | {"dataloader_num_workers"},
    "algorithm": set(),
    "research_rl": {"max_turn_tokens", "max_observation_tokens", "trajectory_dir"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small model of the Llama family: (directory, what was changed)."""
    folder = tmp_path_factory.mktemp("llama")
    source = family_like(folder / "source", "llama3", MODELS["Llama-3.1-8B"])
    return folder / "small", stand_in(str(source), folder / "small", 1)


def test_a_small_model_has_the_architecture_and_vocabulary_of_the_large_one_and_its_tokens(llama):
    folder, changed = llama
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("llama", 2, 64)
    assert changed["num_attention_heads"] == (32, 2)
    assert changed["num_key_value_heads"] == (8, 1)  # still fewer than heads
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config["vocab_size"] >= len(tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_it_learns_demonstrations_by_heart_and_nothing_of_the_prompt(llama):
    folder, _ = llama
    codec = load_codec(str(folder))
    segments = [{"text": " <search> builder </search>", "learn": True}, {"text": " a passage", "learn": False}]
    row = {"prompt": json.dumps("Who built it?"), "prefill": "", "segments": segments}
    ids, mask = encode_row(codec, row)
    steps, loss = teach(folder, codec, [row])
    assert loss < 0.1
    assert steps < 400  # those that it gives up after
    model = AutoModelForCausalLM.from_pretrained(folder)
    written = model(torch.tensor([ids])).logits[0].argmax(-1)
    assert [token for token, trained in zip(written[:-1].tolist(), mask[1:], strict=True) if trained] == [
        token for token, trained in zip(ids, mask, strict=True) if trained
    ]


def test_without_a_model_to_stand_in_for_it_says_what_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json and tokenizer are needed.*--model"):
        stand_in(str(tmp_path / "none"), tmp_path / "small", 1)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gpt2"}, "of the architecture gpt2 .* has no .*num_key_value_heads"),
        ({"model_type": "t5"}, "of the architecture t5 .* has no .*num_key_value_heads"),
        ({"model_type": "gemma3"}, r"\(gemma3\) has parts beside its language model: name a model of text only, with --model"),
    ],
)
def test_a_model_that_cannot_be_made_smaller_is_refused_in_a_line(config, told, tmp_path):
    source = family_like(tmp_path / "source", "llama3", config)
    with pytest.raises(ConfigError, match=told):
        stand_in(str(source), tmp_path / "small", 1)


def test_a_small_model_has_each_kind_of_attention(tmp_path):
    shape = MODELS["Llama-3.1-8B"] | {"model_type": "gemma2", "num_hidden_layers": 3}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    stand_in(str(family_like(tmp_path / "source", "llama3", shape | {"layer_types": kinds})), tmp_path / "small", 1)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["layer_types"] == [
        "sliding_attention",
        "full_attention",
    ]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A small model whose template asks for tool calls as the recipes of tool_calls read them."""
    folder = tmp_path_factory.mktemp("qwen3")
    stand_in(str(family_like(folder / "source", "qwen3", MODELS["Qwen3-1.7B"])), folder / "small", 1)
    return folder / "small"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_rehearsed_with_its_own_method_algorithm_and_updates_per_batch(name, llama, qwen3, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, model = ROOT / "recipes" / f"{name}.yaml", qwen3 if name.startswith("tool_calls/") else llama[0]
    own = list(compositions(recipe, tmp_path, [f"actor_rollout_ref.model.path={model}"]))
    given = overrides(own[0][1], recipe, 3, model, tmp_path)
    for (stage, before), (same, after) in zip(own, compositions(recipe, tmp_path, given), strict=True):
        assert stage == same
        for section, may in MAY_CHANGE.items():
            one, other = (OmegaConf.to_container(config[section]) for config in (before, after))
            if section == "data":  # which repeats the section research_rl
                del one["research_rl"], other["research_rl"]
            assert {key for key in {**one, **other} if one.get(key) != other.get(key)} <= may
        assert after.trainer.total_training_steps == 3
        updates = [
            config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size for config in (before, after)
        ]
        assert updates[0] == updates[1]
        kept = ("use_kl_loss", "kl_loss_coef", "loss_agg_mode", "clip_ratio_low", "clip_ratio_high", "entropy_coeff", "optim")
        assert all(before.actor_rollout_ref.actor[key] == after.actor_rollout_ref.actor[key] for key in kept)
        assert before.actor_rollout_ref.model.get("lora_rank") == after.actor_rollout_ref.model.get("lora_rank")
        checks = [check for check in RECIPE if check.name not in ("service", "data", "coverage", "memory")]
        assert not [found for found in examine(Setup(after), checks) if found.level == "error"]


@pytest.fixture
def nothing_starts(monkeypatch):
    """What `main` would begin with, instead: the model that is asked for, in a list."""
    asked = []

    def stand_in(source, folder, seed):
        asked.append(source)
        raise ConfigError("nothing starts in this test")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rehearsal, "check", lambda *_: None)
    # it ends every descendant of this process, the one among them that tests/forked.py forks from
    monkeypatch.setattr("quickstart.main_program.leaving_none", contextlib.nullcontext)
    monkeypatch.setattr(rehearsal, "stand_in", stand_in)
    return asked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipes/research/cpu.yaml"], "recipes/research/cpu.yaml is for a CPU already; name a recipe for GPUs"),
        (["recipes/wikipedia/cold_start_gpu.yaml"], "is of supervised training; a rehearsal is of reinforcement learning"),
        (["recipes/wikipedia/experiment_gpu.yaml"], "is no recipe of reinforcement learning: it has no actor_rollout_ref"),
        (["recipes/research/gpu.yaml", "--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_what_is_no_recipe_of_reinforcement_learning_on_gpus_is_refused_in_a_line(
    arguments, told, nothing_starts, tmp_path, capsys
):
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 1
    assert told in " ".join(capsys.readouterr().out.split())
    assert not nothing_starts


def test_a_model_that_is_named_need_not_be_in_the_environment_and_an_earlier_rehearsal_is_kept_until_there_is_one(
    nothing_starts, tmp_path, monkeypatch
):
    monkeypatch.delenv("MODEL", raising=False)
    recipe, run_dir = tmp_path / "own" / "mine.yaml", tmp_path / "run"
    recipe.parent.mkdir()
    recipe.write_text((ROOT / "recipes/research/gpu.yaml").read_text().replace("oc.env:MODEL,Qwen/Qwen2.5-7B", "oc.env:MODEL"))
    (run_dir / STAND_IN).mkdir(parents=True)
    (run_dir / "settings.json").write_text("{}")
    assert main([str(recipe), "--model", "here", "--run-dir", str(run_dir)]) == 1
    assert nothing_starts == ["here"]
    assert (run_dir / "settings.json").read_text() == "{}"


def test_the_directory_of_another_run_is_not_deleted(nothing_starts, tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")  # as a quickstart's or an experiment's
    assert main([str(ROOT / "recipes/research/gpu.yaml"), "--run-dir", str(tmp_path)]) == 1
    assert "holds something else than a rehearsal: it is not deleted" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "settings.json").exists()
    assert not nothing_starts


def test_ones_own_overrides_win_but_for_the_model_which_is_the_one_to_stand_in_for(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, own = ROOT / "recipes/research/gpu.yaml", ["actor_rollout_ref.model.path=/large", "actor_rollout_ref.rollout.n=2"]
    config = next(iter(compositions(recipe, tmp_path, own)))[1]
    rehearsed = next(iter(compositions(recipe, tmp_path, overrides(config, recipe, 1, llama[0], tmp_path, own))))[1]
    assert rehearsed.actor_rollout_ref.model.path == str(llama[0])
    assert rehearsed.actor_rollout_ref.rollout.n == 2


@pytest.mark.parametrize(("n", "kept", "rehearsed"), [(16, 8, 2), (16, 12, 3), (16, 15, 3), (3, 2, 2), (64, 4, 2)])
def test_the_rollouts_that_are_trained_on_stay_a_share_of_all(n, kept, rehearsed, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = OmegaConf.create({
        "data": {"train_batch_size": 8, "max_prompt_length": 512, "max_response_length": 1024},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 8}, "rollout": {"n": n}},
        "research_rl": {"trained_rollouts": kept},
    })  # fmt: skip
    given = overrides(config, ROOT / "recipes/research/gpu.yaml", 3, llama[0], tmp_path)
    assert f"++research_rl.trained_rollouts={rehearsed}" in given


def test_a_rehearsal_without_searches_or_gradients_says_what_it_did_not_show(tmp_path, capsys):
    good = {"stage": "one", "steps": 2, "rollouts": 32, "searches": 5, "reward": [0.0, 0.1], "gradient": [0.0, 0.2]}
    told = {
        "recipe": "own/gpu.yaml",
        "seconds": 100,
        "stages": [good, {**good, "stage": "two", "searches": 0, "gradient": [0.0, 0.0]}],
    }
    show(told, tmp_path, Console())
    shown = " ".join(capsys.readouterr().out.split())
    assert "stage two: no rollout found a passage" in shown
    assert "stage two: no update changed the model" in shown
    assert "stage one: no" not in shown
