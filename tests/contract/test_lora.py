"""LoRA recipes: built on the recipes for 8 GPUs, understood by verl, and the fused kernels that they rely on reckon what others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from research_rl.training.recipe import load_recipe, stages_of
from research_rl.verl_plugin.doctor.compose import compositions
from research_rl.verl_plugin.doctor.size import adapter_parameters

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights_all_methods"
RECIPES = sorted((ROOT / "recipes").glob("*/gpu_lora_*.yaml"))
OVERLAYS = ("lora", "lora_24gb")
LR = "actor_rollout_ref.actor.optim.lr"
pytestmark = pytest.mark.slow


def flat(section: Any, key: str = "") -> dict[str, Any]:
    """Return a section's leaves by key."""
    if not isinstance(section, dict) or not section:
        return {key: section}
    return {
        name: value for part, inner in section.items() for name, value in flat(inner, f"{key}.{part}" if key else part).items()
    }


def overlay(name: str) -> dict[str, Any]:
    return flat(yaml.safe_load((ROOT / "research_rl" / "config" / f"{name}.yaml").read_text(encoding="utf-8")))


def composed(name: str, folder: Path) -> dict[str, Any]:
    """Return the leaves of a composed configuration, references unresolved."""
    with initialize_config_dir(str(folder), version_base=None):
        config = compose(name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]"])
    return flat(OmegaConf.to_container(config, resolve=False))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_lora_recipe_is_the_recipe_for_eight_gpus_with_its_overlays_and_its_own_lines_on_top(recipe):
    own = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    named = own.pop("defaults")
    on_top = {key: value for name in OVERLAYS if name in named for key, value in overlay(name).items()} | flat(own)
    eight = composed("gpu", recipe.parent)
    assert composed(recipe.stem, recipe.parent) == eight | on_top
    assert on_top[LR] == pytest.approx(10 * eight[LR])
    assert [stage.name for stage in stages_of(recipe, [])[0]] == [
        stage.name for stage in stages_of(recipe.with_name("gpu.yaml"), [])[0]
    ]


def test_every_key_of_the_overlays_is_one_of_verls():
    import verl.trainer

    known = composed("ppo_trainer", Path(verl.trainer.__file__).parent / "config")
    assert [key for name in OVERLAYS for key in overlay(name) if key not in known] == []


def test_verl_makes_of_the_keys_what_its_engines_read(tmp_path):
    from verl.utils.config import omega_conf_to_dataclass

    recipe = ROOT / "recipes" / "research" / "gpu_lora_80gb.yaml"
    ((_, config),) = compositions(recipe, tmp_path, [f"actor_rollout_ref.model.path={WEIGHTS}"])
    model: Any = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (64, 64, "all-linear")
    assert model.use_fused_kernels
    assert not model.lora["merge"]  # the engine is sent adapters
    rollout: Any = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.load_format, rollout.layered_summon, rollout.tensor_model_parallel_size) == ("safetensors", False, 1)
    assert config.actor_rollout_ref.actor.fsdp_config.model_dtype == "fp32"  # the adapter's type, too


def test_a_recipe_over_another_one_has_its_defaults_stages_and_settings_with_its_own_on_top(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "defaults: [ppo_trainer, on_cpu, _self_]\nstages: {one: {until: {steps: 3}}}\ntrainer: {experiment_name: a, total_epochs: 2}\n",
        encoding="utf-8",
    )
    (tmp_path / "over.yaml").write_text("defaults: [base, lora, _self_]\ntrainer: {experiment_name: b}\n", encoding="utf-8")
    content = load_recipe(tmp_path / "over.yaml")
    assert content["trainer"] == {"experiment_name": "b", "total_epochs": 2}
    assert {"ppo_trainer", "on_cpu", "lora"} <= set(content["defaults"])
    assert "base" not in content["defaults"]
    assert [stage.name for stage in stages_of(tmp_path / "over.yaml", [])[0]] == ["one"]


def test_verls_fused_kernels_make_the_log_probabilities_and_gradients_of_an_adapted_model(monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM
    from verl.models.transformers.monkey_patch import patch_forward_with_backends

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    assert isinstance(base, Qwen2ForCausalLM)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules="all-linear"))
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    section = OmegaConf.create({"lora_rank": 4, "target_modules": "all-linear", "exclude_modules": None})
    assert sum(parameter.numel() for parameter in adapter) == adapter_parameters(base.config, section)
    with torch.no_grad():
        for parameter in adapter:
            parameter += 0.02 * torch.randn_like(parameter)
    ids = torch.randint(0, base.config.vocab_size, (1, 600))  # more than the kernels take at a time

    def gradients(logprobs: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        logprobs[:, :-1].sum().backward()
        return [parameter.grad.clone() for parameter in adapter if parameter.grad is not None]

    expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    slopes = gradients(torch.nn.functional.pad(expected, (0, 1)))
    monkeypatch.setattr(
        Qwen2ForCausalLM, "forward", Qwen2ForCausalLM.forward
    )  # the next line changes the class: undone at the end
    patch_forward_with_backends(base, use_fused_kernels=True, fused_kernels_backend="torch")
    found = model(input_ids=ids, return_dict=True, temperature=1.0).log_probs
    torch.testing.assert_close(found[:, :-1], expected, atol=1e-4, rtol=1e-4)
    for one, other in zip(gradients(found), slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert len(slopes) == len(adapter)


@pytest.mark.parametrize("adapted", [False, True])
def test_under_fsdp2_the_fused_kernels_read_the_whole_head_of_a_model_that_does_not_tie_it(adapted, monkeypatch, tmp_path):
    from peft import LoraConfig, get_peft_model
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.models.transformers.monkey_patch import patch_forward_with_backends
    from verl.utils.fsdp_utils import apply_fsdp2

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    base = Qwen2ForCausalLM(Qwen2Config(vocab_size=97, tie_word_embeddings=False, **shape))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")) if adapted else base
    ids = torch.randint(0, 97, (1, 40))
    expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", Qwen2ForCausalLM.forward)  # undone at the end
    patch_forward_with_backends(base, use_fused_kernels=True, fused_kernels_backend="torch")
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        apply_fsdp2(model, {"mesh": init_device_mesh("cpu", (1,)), "reshard_after_forward": True}, {})
        found = model(input_ids=ids, return_dict=True, temperature=1.0).log_probs
        torch.testing.assert_close(found[:, :-1], expected, atol=1e-4, rtol=1e-4)
        found[:, :-1].sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    finally:
        destroy_process_group()
