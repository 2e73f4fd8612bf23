"""Every recipe composes over verl's trainer, passes our checks, and says in its README what it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from research_rl.methods import method_names
from research_rl.training.jobs import jobs, stage_overrides
from research_rl.training.recipe import stages_of
from research_rl.training.settings import Settings
from research_rl.verl_plugin.doctor.examine import RECIPE, examine, refuse
from research_rl.verl_plugin.doctor.lengths import set_engine_length
from research_rl.verl_plugin.doctor.setup import Setup
from tests import forked

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path for path in (ROOT / "recipes").glob("*/*.yaml") if not path.stem.startswith("experiment")
)  # which name recipes
SUPERVISED = [path for path in RECIPES if path.stem.startswith("cold_start")]
TRAINERS = [path for path in RECIPES if path not in SUPERVISED]
IDS = [f"{path.parent.name}/{path.name}" for path in TRAINERS]
SEARCHPATH = "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]"
pytestmark = pytest.mark.slow


def composed(recipe: Path, overrides=()):
    with initialize_config_dir(str(recipe.parent), version_base=None):
        return compose(recipe.stem, overrides=[SEARCHPATH, *overrides])


@pytest.mark.parametrize("recipe", TRAINERS, ids=IDS)
def test_a_recipe_and_each_of_its_stages_pass_the_checks_made_before_training(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # prompts are named from here
    stages, _ = stages_of(recipe, [])
    model = tmp_path / "model"
    variants = [
        stage_overrides(stage, tmp_path, number, model, "name") for number, stage in enumerate(stages)
    ]  # as the driver does
    for overrides in variants or [[]]:
        config = composed(recipe, [part for part in overrides if not part.startswith("hydra.")])
        resolved = OmegaConf.to_container(config, resolve=True)
        settings = Settings.from_mapping(resolved["research_rl"])
        budget = resolved["data"]["max_prompt_length"] + resolved["data"]["max_response_length"]
        setup = Setup(config)
        refuse(examine(setup, [check for check in RECIPE if check.name not in ("service", "data", "coverage")]))
        set_engine_length(setup)
        assert config.actor_rollout_ref.rollout.max_model_len >= budget
        assert settings.load().name in method_names()
    assert next(jobs(recipe, tmp_path, [])).command


@pytest.mark.parametrize("recipe", SUPERVISED, ids=[f"{path.parent.name}/{path.name}" for path in SUPERVISED])
def test_a_supervised_recipe_composes_and_keeps_what_training_goes_on_from(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", "m")
    config = composed(recipe)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    assert resolved["data"]["custom_cls"]["name"] == "TrajectoryDataset"
    assert resolved["data"]["pad_mode"] == "no_padding"
    assert resolved["data"]["max_length"] <= resolved["data"]["max_token_len_per_gpu"]  # a row fits in a micro-batch
    assert set(resolved["checkpoint"]["save_contents"]) == {"model", "optimizer", "extra"}
    assert resolved["trainer"]["save_freq"] > 0
    assert resolved["trainer"]["default_local_dir"] == f"{resolved['run_dir']}/checkpoints"
    job = next(jobs(recipe, tmp_path, []))
    assert f"--nproc_per_node={resolved['trainer']['n_gpus_per_node']}" in job.command
    assert ("VERL_PLATFORM" in job.environment) == (resolved["trainer"]["device"] == "cpu") == recipe.stem.endswith("cpu")


@pytest.mark.parametrize("recipe", TRAINERS, ids=IDS)
def test_verls_command_shows_the_whole_recipe(recipe):
    done = forked.verl("--config-dir", str(recipe.parent), "--config-name", recipe.stem, "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr[-2000:]
    job = OmegaConf.create(done.stdout)
    assert job.actor_rollout_ref.rollout.agent.agent_loop_manager_class.endswith("SearchAgentLoopManager")
    assert job.trainer.v1.sampler.sync_refill_failed_groups is True
    assert (job.actor_rollout_ref.rollout.top_p, job.actor_rollout_ref.rollout.top_k) == (1.0, -1)


def test_what_the_comparison_overrides_stands_in_the_recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import methods

    runs = [(*run, experiment.overrides) for experiment in methods.EXPERIMENTS.values() for run in experiment.runs.values()]
    for recipe, own, shared in runs:
        overrides = (*own, *shared)
        config = composed(ROOT / "recipes" / recipe, overrides)
        for override in overrides:
            key, _, value = override.partition("=")
            assert OmegaConf.select(config, key) == yaml.safe_load(value)


def rows_of(readme: Path):
    """Yield (key, value) of the table of hyper-parameters."""
    for line in readme.read_text().splitlines():
        if match := re.match(r"\| [^|]+ \| `([a-z0-9_.]+)` \| ([^|]+) \| [^|]+ \|$", line):
            yield match[1], yaml.safe_load(match[2])


@pytest.mark.parametrize("method", ["research", "r1_searcher", "r1_searcher_pp", "search_r1"])
def test_the_readmes_table_of_hyper_parameters_is_what_the_gpu_recipe_sets(method):
    config = composed(ROOT / "recipes" / method / "gpu.yaml")
    table = list(rows_of(ROOT / "recipes" / method / "README.md"))
    assert len(table) >= 10
    for key, value in table:
        found = OmegaConf.select(config, key, throw_on_missing=True)
        assert found == (float(value) if isinstance(found, float) else value), key
    assert {"console", "wandb", "tensorboard"} == set(config.trainer.logger)


def test_a_staged_recipe_is_refused_by_verls_own_command():
    recipe = ROOT / "recipes" / "r1_searcher" / "gpu.yaml"
    done = forked.verl("--config-dir", str(recipe.parent), "--config-name", "gpu", VERL_PLATFORM="cpu")
    assert done.returncode != 0
    assert "this recipe has stages" in done.stderr
