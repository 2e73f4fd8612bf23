"""The model of a checkpoint: made of the shards where a stage ends, half as large as they are, and what it says it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from research_rl.errors import ConfigError
from research_rl.training.export import export, say_dtype
from tests.contract.ranks import run_ranks

SCRIPT = Path(__file__).with_name("save_shards.py")
START = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the CPU platform is for Linux")]


def saved(directory: Path, contents: str, ranks: int, lora_rank: int = 0) -> Path:
    """Return what verl's engine saves of the starting model, on that many ranks."""
    actor = directory / "actor"
    run_ranks(SCRIPT, ranks, [str(directory / "meet"), str(actor), contents, str(lora_rank)])
    return actor


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("shards"), "model,optimizer,extra", ranks=2)


@pytest.fixture(scope="module")
def model(shards) -> Path:
    (shards / "huggingface" / "research_rl.json").write_text("{}")  # the protocol, which the callback has put there
    return export(shards)


def test_the_exported_model_is_the_shards_model_in_half_the_bytes(shards, model):
    assert model == shards / "huggingface"
    exported, start = load_file(model / "model.safetensors"), load_file(START / "model.safetensors")
    assert exported.keys() == start.keys()
    assert all(torch.equal(exported[name], start[name].bfloat16()) for name in start)
    ratio = (model / "model.safetensors").stat().st_size / (START / "model.safetensors").stat().st_size
    assert 0.49 < ratio < 0.52
    assert not list(shards.glob("huggingface.*"))


def test_a_lora_adapter_is_merged_into_the_exported_model(tmp_path):
    actor = saved(tmp_path, "model,optimizer,extra", ranks=2, lora_rank=4)
    model = export(actor)
    exported, start = load_file(model / "model.safetensors"), load_file(START / "model.safetensors")
    assert exported.keys() == start.keys()
    adapter = torch.load(actor / "adapter.pt", weights_only=True)
    changed = 0
    for name, weight in start.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if (a := adapter.get(f"{key}.lora_A.default.weight")) is not None:
            b = adapter[f"{key}.lora_B.default.weight"]
            weight, changed = weight.float() + 2.0 * b @ a, changed + 1  # alpha / r is 2
        assert torch.allclose(exported[name].float(), weight.float(), atol=0.02, rtol=0.02), name
    assert changed == len(adapter) // 2 > 0
    assert not (model / "lora_adapter").exists()
    assert json.loads((model / "merged_lora.json").read_text())["r"] == 4
    assert export(actor, lambda command: 1) == model  # it is not made again


def test_the_exported_model_loads_with_its_tokenizer_and_keeps_its_protocol(model):
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(model).encode("Who?") == AutoTokenizer.from_pretrained(START).encode("Who?")
    assert (model / "research_rl.json").read_text() == "{}"
    assert json.loads((model / "config.json").read_text())["dtype"] == "bfloat16"
    assert (model / "generation_config.json").is_file()


def test_a_model_that_is_there_is_not_made_again_but_one_that_a_kill_cut_off_is(shards, model):
    seen = []
    assert export(shards, lambda command: seen.append(command) or 0) == model
    assert seen == []
    part = shards / "huggingface.part"
    part.mkdir()
    (part / "half").touch()

    def merge(command):
        assert not (part / "half").exists()
        (part / "fresh").touch()
        return 0

    export(shards, merge)
    assert (model / "fresh").is_file()
    assert not part.exists()


def test_a_merger_that_fails_is_told_with_the_command_and_tried_again(tmp_path):
    (tmp_path / "huggingface").mkdir()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"exit code 1.*verl\.model_merger merge --backend fsdp"):
            export(tmp_path, lambda command: 1)


def test_a_model_that_verl_itself_exports_in_float32_says_so(tmp_path):
    exported = saved(tmp_path, "model,hf_model", ranks=1) / "huggingface"
    assert next(iter(load_file(exported / "model.safetensors").values())).dtype == torch.float32
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"  # the reason: verl names another
    say_dtype(exported)
    assert AutoModelForCausalLM.from_pretrained(exported).dtype == torch.float32
