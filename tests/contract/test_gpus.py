"""Every GPU recipe at 1, 8 and 64 GPUs: it composes, its batches divide and the estimate fits, or the doctor says clearly why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpus  # noqa: E402

ONE = [
    recipe
    for recipe in gpus.RECIPES
    if "lora" in recipe or recipe in ("tool_calls/gpu", "tool_calls/gpu_small", "wikipedia/gpu")
]  # meant for one GPU, and more
PARAMETERS = {  # as published
    "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-3B": 3_085_938_688, "Qwen3-1.7B": 1_720_574_976,
    "Llama-3.1-8B": 8_030_261_248, "SmolLM2-135M": 134_515_008,
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    return {(recipe, count): gpus.look(recipe, count) for recipe in gpus.RECIPES for count in gpus.SIZES}


def test_every_gpu_recipe_is_in_the_table():
    there = {f"{path.parent.name}/{path.stem}" for path in (ROOT / "recipes").glob("*/gpu*.yaml")}
    assert there == set(gpus.RECIPES)


@pytest.mark.parametrize("name", gpus.MODELS)
def test_a_models_shape_has_as_many_parameters_as_the_model(name, tmp_path):
    from transformers import AutoConfig

    from research_rl.verl_plugin.doctor.size import parameters

    (tmp_path / "config.json").write_text(json.dumps(gpus.MODELS[name]), encoding="utf-8")
    assert parameters(AutoConfig.from_pretrained(tmp_path)) == PARAMETERS[name]


@pytest.mark.parametrize("recipe", gpus.RECIPES)
def test_a_recipe_is_sound_at_the_sizes_that_it_is_meant_for(recipe, rows):
    for count in gpus.SIZES if recipe in ONE else (8, 64):
        row = rows[recipe, count]
        assert [finding for finding in row.findings if finding.level != "ok"] == []
        assert row.gib is not None
        assert row.gib < gpus.RECIPES[recipe][1]


@pytest.mark.parametrize("recipe", [recipe for recipe in gpus.RECIPES if recipe not in ONE])
def test_a_recipe_for_eight_gpus_is_refused_on_one_with_both_reasons(recipe, rows):
    row = rows[recipe, 1]
    assert "1 devices cannot be shared by engines of 2 each" in row.errors("batches")[0]
    assert "a GPU must hold weights, gradients, Adam" in row.errors("memory")[0]
    assert "Take more GPUs, or a smaller model" in row.errors("memory")[0]


def test_updates_that_64_ranks_cannot_share_are_refused():
    row = gpus.look("r1_searcher/gpu", 64, ("actor_rollout_ref.actor.ppo_mini_batch_size=2",))
    assert "2 x 16 rollouts of an update cannot be shared by 64 ranks" in row.errors("batches")[0]


@pytest.mark.parametrize(("override", "told"), [
    ("actor_rollout_ref.model.use_fused_kernels=false", "logits 26.1 GiB"),
    ("actor_rollout_ref.model.lora_rank=0", "a GPU must hold weights, gradients, Adam 46.0 GiB"),
])  # fmt: skip
def test_24_gb_need_the_adapter_and_the_fused_kernels(override, told):
    assert told in gpus.look("research/gpu_lora_24gb", 1, (override,)).errors("memory")[0]


def test_the_documents_table_is_what_the_command_prints(rows):
    table = gpus.DOCUMENT.read_text(encoding="utf-8").partition(gpus.BEGIN)[2].partition(gpus.END)[0]
    assert table.splitlines()[2:] == [str(row) for row in rows.values()]
