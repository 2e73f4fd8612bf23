"""Every algorithm option composes with the recipes, arrives in verl's own settings, and is the loss that its equation says."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from research_rl.errors import ConfigError
from research_rl.training.jobs import jobs
from research_rl.training.recipe import SUPERVISED, defaults_of, load_recipe, stages_of
from research_rl.verl_plugin.doctor.compose import compositions
from research_rl.verl_plugin.doctor.examine import examine, refuse
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.training import batches, estimator, policy_loss
from tests import forked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "research_rl" / "config" / "algorithm_option"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RECIPES = [
    path
    for path in sorted((ROOT / "recipes").glob("*/*.yaml"))
    if not path.stem.startswith("experiment") and SUPERVISED not in defaults_of(load_recipe(path))
]
EACH = 3  # options tried with a recipe, so that every one meets several: all pairs would take a minute
PAIRS = [
    (recipe, OPTIONS[(EACH * number + step) % len(OPTIONS)]) for number, recipe in enumerate(RECIPES) for step in range(EACH)
]
pytestmark = pytest.mark.slow


def leaves(option: str) -> dict[str, Any]:
    """Return what an option sets, by key, with what it takes over from others."""
    content = yaml.safe_load((FOLDER / f"{option}.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for other in content.pop("defaults", ["_self_"]):
        found |= {} if other == "_self_" else leaves(other)

    def walk(section: Any, key: str) -> None:
        for name, value in section.items():
            walk(value, f"{key}{name}.") if isinstance(value, dict) else found.update({f"{key}{name}": value})

    walk(content, "")
    return found


@pytest.mark.parametrize(
    ("recipe", "option"), PAIRS, ids=[f"{recipe.parent.name}-{recipe.stem}-{name}" for recipe, name in PAIRS]
)
def test_an_option_composes_with_a_recipe_and_its_keys_arrive_in_verls_settings(recipe, option, tmp_path, monkeypatch):
    from verl.utils.config import omega_conf_to_dataclass

    monkeypatch.setenv("MODEL", "m")
    monkeypatch.chdir(ROOT)
    of_stage = {stage.name: stage.overrides for stage in stages_of(recipe, [])[0]}
    for name, config in compositions(recipe, tmp_path, [f"+algorithm_option={option}"]):
        apart = option == "separate_async" and config.actor_rollout_ref.model.lora_rank
        with pytest.raises(ConfigError, match="not the LoRA adapter") if apart else nullcontext():
            refuse(examine(Setup(config), [estimator, policy_loss, batches]))
        verls = {
            "algorithm": omega_conf_to_dataclass(config.algorithm),
            "actor_rollout_ref.actor": omega_conf_to_dataclass(config.actor_rollout_ref.actor),
        }
        for key, value in leaves(option).items():
            expected = of_stage.get(name, {}).get(key, value)  # what a stage sets itself is the recipe's method
            if isinstance(expected, str) and expected.startswith("${"):
                expected = OmegaConf.select(config, expected[2:-1])
            assert OmegaConf.select(config, key) == expected, key
            for section, made in verls.items():
                if key.startswith(f"{section}."):
                    for part in key.removeprefix(f"{section}.").split("."):
                        made = made[part]
                    assert made == expected, key


def test_every_option_is_tried_with_several_recipes_and_is_told_in_the_docs():
    assert {name for _, name in PAIRS} == set(OPTIONS)
    told = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert [name for name in OPTIONS if f"`{name}`" not in told] == []


def test_options_can_be_put_together_and_an_unknown_one_is_told_with_the_valid_ones(tmp_path):
    recipe = ROOT / "recipes" / "research" / "gpu.yaml"
    ((_, config),) = compositions(recipe, tmp_path, ["+algorithm_option=[gspo,rollout_correction]"])
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gspo"
    assert config.algorithm.rollout_correction.rollout_is == "token"
    ((_, config),) = compositions(
        recipe, tmp_path, ["actor_rollout_ref.actor.clip_ratio_high=0.3", "+algorithm_option=clip_higher"]
    )
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.3  # a key on the command line wins
    with pytest.raises(ConfigError, match="gspo"):
        list(compositions(recipe, tmp_path, ["+algorithm_option=gpso"]))


def test_a_recipe_can_have_an_option_in_its_defaults(tmp_path):
    recipe = tmp_path / "own.yaml"
    text = (ROOT / "recipes" / "research" / "gpu.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("  - on_gpus\n", "  - on_gpus\n  - algorithm_option: cispo\n"), encoding="utf-8")
    ((_, config),) = compositions(recipe, tmp_path, [])
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "cispo"


def test_verls_own_command_and_the_jobs_of_every_stage_take_an_option(tmp_path):
    option = "+algorithm_option=gspo"
    staged = ROOT / "recipes" / "r1_searcher" / "gpu.yaml"
    assert option in next(jobs(staged, tmp_path, [option])).command
    done = forked.verl("--config-dir", str(staged.parent), "--config-name", "gpu", "--cfg", "job", option)
    assert done.returncode == 0, done.stderr[-2000:]
    assert OmegaConf.create(done.stdout).actor_rollout_ref.actor.policy_loss.loss_mode == "gspo"


def composed(option: str, tmp_path_factory) -> Any:
    overrides = [f"+algorithm_option={option}"] if option else []
    ((_, config),) = compositions(ROOT / "recipes" / "search_r1" / "gpu.yaml", tmp_path_factory.mktemp("run"), overrides)
    return config


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return {option: composed(option, tmp_path_factory) for option in ("", *OPTIONS)}


def batch(seed: int, spread: float = 0.5):
    """Return old and new log-probabilities, advantages (one a row) and mask, (5 rows, 7 tokens); observations stand in between."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand((5, 7), generator=random) * 3
    new = (old + spread * torch.randn((5, 7), generator=random)).clamp(max=0).requires_grad_()
    advantages = torch.randn((5, 1), generator=random).expand(5, 7)
    mask = torch.rand((5, 7), generator=random) > 0.4
    mask[:, 0], mask[:, 3] = True, False
    return old, new, advantages, mask


def verls_loss(config: Any, old, new, advantages, mask, weights=None) -> torch.Tensor:
    """Return the loss as `verl.workers.utils.losses.ppo_loss` calls it, and leave the gradient in `new`."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    actor: Any = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor.global_batch_info.update(
        dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=len(mask), loss_scale_factor=actor.loss_scale_factor
    )
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, loss_agg_mode=actor.loss_agg_mode,
        config=actor, rollout_is_weights=weights,
    )  # fmt: skip
    loss.backward()
    return loss.detach()


def clipped(ratio, advantage, low, high):
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


SEEDS = st.integers(0, 10_000)


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_observations_have_no_gradient_and_change_nothing(option, configs):
    old, new, advantages, mask = batch(3)
    loss = verls_loss(configs[option], old, new, advantages, mask)
    assert new.grad is not None
    assert (new.grad[~mask] == 0).all()
    assert (new.grad[mask] != 0).any()
    other = (new.detach() - 2 * ~mask).requires_grad_()
    close(verls_loss(configs[option], old, other, advantages, mask), loss)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([1e-4, 1e-3, 0.5]))
def test_gspos_ratio_is_the_geometric_mean_over_the_sampled_tokens_of_a_sequence(configs, seed, spread):
    old, new, advantages, mask = batch(seed, spread)
    loss = verls_loss(configs["gspo"], old, new, advantages, mask)
    value, slope = 0.0, torch.zeros_like(old)
    for row in range(len(old)):
        tokens = mask[row].nonzero().flatten()
        ratio = torch.exp((new[row, tokens] - old[row, tokens]).mean()).detach()
        advantage = advantages[row, 0]
        value += clipped(ratio, advantage, 3e-4, 4e-4) / len(old)
        free = ratio < 1 + 4e-4 if advantage > 0 else ratio > 1 - 3e-4
        slope[row, tokens] = -(free * ratio * advantage) / len(tokens) / len(old)
    close(loss, -value)
    close(new.grad, slope)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([0.5, 3.0]))
def test_cispo_clips_the_weight_from_above_alone_and_every_sampled_token_keeps_its_gradient(configs, seed, spread):
    old, new, advantages, mask = batch(seed, spread)
    loss = verls_loss(configs["cispo"], old, new, advantages, mask)
    weight = torch.exp(new.detach() - old).clamp(max=5.0)
    close(loss, -(weight * advantages * new.detach())[mask].sum() / mask.sum())
    close(new.grad, -(weight * advantages * mask) / mask.sum())
    assert (new.grad[mask] != 0).all()


def test_where_ppo_loses_a_clipped_tokens_gradient_cispo_does_not(configs):
    old, advantages, mask = torch.full((1, 2), -3.0), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for option, kept in (("", False), ("cispo", True)):
        new = torch.tensor([[-1.0, -3.0]], requires_grad=True)  # a ratio of e² and one of 1
        verls_loss(configs[option], old, new, advantages, mask)
        assert new.grad is not None
        assert [bool(slope) for slope in new.grad[0] != 0] == [kept, True]


@settings(max_examples=30)
@given(SEEDS)
def test_dr_grpos_loss_is_divided_by_a_constant_and_not_by_lengths(configs, seed):
    config = configs["dr_grpo"]
    old, new, advantages, mask = batch(seed)
    loss = verls_loss(config, old, new, advantages, mask)
    terms = clipped(torch.exp(new.detach() - old), advantages, 0.2, 0.2)
    terms = torch.where(advantages < 0, torch.maximum(terms, 3.0 * advantages), terms)  # verl's dual clip, as in its every loss
    close(loss * 1000, -1000 * terms[mask].sum() / (len(old) * config.data.max_response_length))
    padded = [torch.nn.functional.pad(table, (0, 9)) for table in (old, new.detach(), advantages, mask)]
    close(1000 * verls_loss(config, padded[0], padded[1].requires_grad_(), padded[2], padded[3]), 1000 * loss)


def test_dr_grpos_advantage_is_the_score_minus_the_questions_mean(configs):
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    scores = torch.tensor([[0.0, 1.0], [0.0, 0.25], [0.0, 0.5], [0.0, 0.5]])
    tensors = {"response_mask": torch.ones(4, 2), "token_level_scores": scores, "token_level_rewards": scores}
    found = {}
    for option in ("", "dr_grpo"):
        algorithm = configs[option].algorithm
        data = DataProto.from_dict(tensors, {"uid": np.array(list("aabb"), dtype=object)})
        done = compute_advantage_for_multi_trajectories(  # as PPOTrainer._compute_advantage
            data, batch_keys=["a_0_0", "a_1_0", "b_0_0", "b_1_0"], adv_estimator=algorithm.adv_estimator,
            norm_adv_by_std_in_grpo=algorithm.get("norm_adv_by_std_in_grpo", True), config=algorithm,
        )  # fmt: skip
        found[option] = done.batch["advantages"][:, 0]
    close(found["dr_grpo"], torch.tensor([0.375, -0.375, 0.0, 0.0]))
    assert found[""][0] > 0.7  # GRPO divides by the standard deviation


@pytest.mark.parametrize(("option", "highest"), [("", 1.2), ("clip_higher", 1.28), ("dapo", 1.28)])
def test_clip_higher_lets_a_rewarded_token_rise_further_and_a_punished_one_fall_no_further(option, highest, configs):
    ratios = torch.tensor([[0.75, 0.85, 1.15, highest - 0.01, highest + 0.01]])
    old, mask = torch.full(ratios.shape, -2.0), torch.ones(ratios.shape, dtype=torch.bool)
    for sign, moving in ((1.0, ratios < highest), (-1.0, ratios > 0.8)):
        new = (old + ratios.log()).requires_grad_()
        verls_loss(configs[option], old, new, torch.full(ratios.shape, sign), mask)
        assert new.grad is not None
        assert torch.equal(new.grad != 0, moving)


@settings(max_examples=20)
@given(SEEDS)
def test_rollout_correction_weighs_a_token_by_the_truncated_ratio_of_trainer_and_engine(configs, seed):
    from verl import DataProto
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch

    config = configs["rollout_correction"]
    old, new, advantages, mask = batch(seed)
    sampled = old + torch.randn(old.shape, generator=torch.Generator().manual_seed(seed))
    tensors = {"old_log_probs": old, "rollout_log_probs": sampled, "response_mask": mask}
    data, _ = compute_rollout_correction_and_add_to_batch(DataProto.from_dict(tensors), config.algorithm.rollout_correction)
    weights = data.batch["rollout_is_weights"]
    close(weights[mask], torch.exp(old - sampled).clamp(max=2.0)[mask])
    assert torch.equal(data.batch["response_mask"].bool(), mask)  # no rollout is thrown away
    verls_loss(config, old, new, advantages, mask, weights)
    plain = new.detach().clone().requires_grad_()
    verls_loss(config, old, plain, advantages, mask)
    assert plain.grad is not None
    close(new.grad, plain.grad * weights)


class Queue:
    """A TransferQueue of one partition: questions with the rewards of their rollouts, float32 as verl stores them."""

    def __init__(self) -> None:
        self.rewards: dict[str, list[float]] = {}

    def kv_list(self) -> dict:
        """Return what is there."""
        prompts = {uid: {"is_prompt": True, "status": "finished", "global_steps": 1} for uid in self.rewards}
        return {"train": prompts | {f"{uid}_{n}_0": {} for uid, found in self.rewards.items() for n in range(len(found))}}

    def kv_batch_get(self, keys, partition_id, select_fields) -> dict:
        """Return the token-level rewards."""
        assert (partition_id, select_fields) == ("train", ["rm_scores"])
        pairs = [key.split("_")[:2] for key in keys]
        return {"rm_scores": [torch.tensor([0.0, self.rewards[uid][int(number)]]) for uid, number in pairs]}

    def kv_clear(self, partition_id, keys) -> None:
        """Forget questions."""
        for key in keys:
            self.rewards.pop(key, None)


@pytest.mark.parametrize(("option", "evicted"), [("", 0), ("dynamic_sampling", 2), ("dapo", 2)])
def test_dynamic_sampling_replaces_questions_whose_rollouts_score_alike(option, evicted, configs, monkeypatch):
    from verl.trainer.ppo.v1 import replay_buffer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    queue, asked = Queue(), []
    monkeypatch.setattr(replay_buffer, "tq", queue)

    def ask(count: int) -> None:
        asked.append(count)
        queue.rewards |= {f"new{len(queue.rewards) + number}": [0.0, 0.5, 1.0] for number in range(count)}

    trainer: Any = object.__new__(PPOTrainerSync)  # its constructor wants a cluster
    trainer.config = OmegaConf.merge(configs[option], {"data": {"train_batch_size": 2}})
    trainer.trainer_mode, trainer._add_prompts_to_generate = "sync", ask
    buffer = trainer._build_replay_buffer()
    # 0.1 three times: in float64 their standard deviation is not 0, in float32 it is
    queue.rewards = {"wrong": [0.0, 0.0, 0.0], "alike": [0.1, 0.1, 0.1]}
    chosen, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    uids = {key.split("_")[0] for key in chosen.keys}
    assert uids.isdisjoint({"wrong", "alike"}) == bool(evicted)
    assert len(uids) == 2
    assert sum(asked) >= evicted
    assert metrics.get("training/filter_groups/evicted_samples", 0) == evicted
