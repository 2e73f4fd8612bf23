"""What cannot work together is told before anything starts, and what is left open is set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from research_rl.errors import ConfigError

ROOT = Path(__file__).parents[2]
SEARCHPATH = "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]"
HERE = f"actor_rollout_ref.model.path={ROOT}/quickstart/start_model/weights"
pytestmark = pytest.mark.slow
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
FIXED = [f"{ACTOR}.use_dynamic_bsz=false", f"{ROLLOUT}.log_prob_use_dynamic_bsz=false"]
SYNC = "trainer.v1.separate_async.parameter_sync_step"
BUCKET = f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"


def composed(recipe: str, *overrides: str):
    path = ROOT / "recipes" / recipe
    with initialize_config_dir(str(path.parent), version_base=None):
        return compose(path.stem, overrides=[SEARCHPATH, *overrides])


def check(config) -> None:
    from research_rl.verl_plugin.doctor import lengths, training
    from research_rl.verl_plugin.doctor.examine import examine, refuse
    from research_rl.verl_plugin.doctor.setup import Setup

    setup = Setup(config)
    refuse(examine(setup, [training.trainer, training.estimator, training.batches, lengths.lengths, lengths.bucket]))
    lengths.set_engine_length(setup)
    training.set_sync_step(config)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes name their prompts from here


GROUP = ["grpo", "reinforce_group_baseline", "rloo", "reinforce_plus_plus_baseline", "opo", "gpg", "grpo_passk", "gdpo"]


@pytest.mark.parametrize("estimator", GROUP)
def test_an_estimator_that_compares_rollouts_needs_several(estimator):
    with pytest.raises(ConfigError, match="leaves nothing to compare"):
        check(composed("quickstart/train.yaml", f"algorithm.adv_estimator={estimator}", f"{ROLLOUT}.n=1"))
    check(composed("quickstart/train.yaml", "algorithm.adv_estimator=reinforce_plus_plus", f"{ROLLOUT}.n=1"))


def test_kl_in_the_reward_is_refused_where_it_is_divided_by_the_spread_of_a_group():
    with pytest.raises(ConfigError, match=r"use_kl_in_reward=true does not go with adv_estimator=grpo.*use_kl_loss=true"):
        check(composed("quickstart/train.yaml", "algorithm.use_kl_in_reward=true"))
    check(composed("quickstart/train.yaml", "algorithm.use_kl_in_reward=true", "algorithm.norm_adv_by_std_in_grpo=false"))
    check(composed("r1_searcher/cpu_stage2_only.yaml", "algorithm.use_kl_in_reward=true"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([f"{ROLLOUT}.name=hf"], "must be one of vllm, sglang"),
        ([f"{ROLLOUT}.name=sglang"], "must be vllm on a CPU"),
        (["trainer.use_v1=false"], "use_v1 must be true"),
        (["distillation.enabled=true"], "the rollout asks no teacher"),
        (["reward.reward_model.enable=true"], "verl's reward model is never asked"),
        (["algorithm.adv_estimator=gpro"], "'gpro' is unknown; valid: .*grpo"),
        ([f"{ACTOR}.ppo_mini_batch_size=12"], "must be a multiple of .*ppo_mini_batch_size=12"),
        ([f"{ACTOR}.ppo_mini_batch_size=32"], "must be a multiple of .*ppo_mini_batch_size=32"),
        ([f"{ACTOR}.ppo_mini_batch_size=4", f"{ACTOR}.shuffle=false"], r"makes 4 updates.*shuffle=true"),
        ([f"{ACTOR}.ppo_epochs=2", f"{ACTOR}.shuffle=false"], r"makes 2 updates.*shuffle=true"),
        (["trainer.n_gpus_per_node=2", f"{ROLLOUT}.tensor_model_parallel_size=4"], "engines of 4 each"),
        (["trainer.n_gpus_per_node=3"], "16 x 8 rollouts of an update cannot be shared by 3 ranks"),
        (["trainer.v1.trainer_mode=separate_async"], "backend must carry weights to other devices"),
        (
            ["+algorithm_option=[separate_async]", f"{SYNC}=1", f"{ACTOR}.ppo_mini_batch_size=8"],
            "got 1 x 8. Set .*null, which is 2",
        ),
        (
            ["+algorithm_option=[separate_async]", f"{ROLLOUT}.tensor_model_parallel_size=2"],
            "n_gpus_per_node x nnodes = 1 devices",
        ),
        ([*FIXED, f"{ACTOR}.ppo_micro_batch_size_per_gpu=48"], "ppo_micro_batch_size_per_gpu=48 must divide the 128"),
        (
            [*FIXED, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=48"],
            "log_prob_micro_batch_size_per_gpu=48 must divide the 128",
        ),
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=400"], r"ppo_max_token_len_per_gpu=400 is less than one trajectory, .* = 464"),
        ([BUCKET + "=0"], r"update_weights_bucket_megabytes=0 .*holds? less than the embedding"),
        (["data.max_response_length=1000"], "= 1064 is more than the 1024 positions"),
        ([f"{ROLLOUT}.max_model_len=463"], "max_model_len=463 must be at least .* = 464"),
        ([f"{ROLLOUT}.max_model_len=2000"], "at most the 1024 positions"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_loaded(overrides, told):
    with pytest.raises(ConfigError, match=told):
        check(composed("quickstart/train.yaml", *overrides))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([f"{ROLLOUT}.name=sglang", f"{ROLLOUT}.skip_tokenizer_init=true"], "skip_tokenizer_init must be false with SGLang"),
        ([f"{ACTOR}.shuffle=false"], r"makes 4 updates"),
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=9000"], r"actor\.ppo_max_token_len_per_gpu=9000 is less than one trajectory"),
        ([f"{ROLLOUT}.log_prob_max_token_len_per_gpu=9000"], r"rollout\.log_prob_max_token_len_per_gpu=9000 is less"),
    ],
)
def test_what_cannot_work_on_gpus_is_told_before_anything_is_loaded(overrides, told):
    with pytest.raises(ConfigError, match=told):
        check(composed("r1_searcher/gpu.yaml", *overrides))


def test_engines_on_devices_of_their_own_are_accepted():
    check(composed("quickstart/train.yaml", "+algorithm_option=[separate_async]"))
    with pytest.raises(ConfigError, match="cannot put aside weights that are not sharded"):
        check(composed("quickstart/train.yaml", "+algorithm_option=[separate_async]", f"{ACTOR}.ppo_mini_batch_size=8"))
    config = composed("search_r1/gpu.yaml", "+algorithm_option=[separate_async]")
    check(config)
    assert config.trainer.v1.separate_async.parameter_sync_step == 8  # updates per batch


def test_an_adapter_that_would_not_reach_the_engines_is_refused():
    with pytest.raises(ConfigError, match=r"not the LoRA adapter; got actor_rollout_ref\.model\.lora_rank=\d+\."):
        check(composed("research/gpu_lora_80gb.yaml", "+algorithm_option=[separate_async]"))


def test_sglang_is_an_engine_on_gpus():
    config = composed("r1_searcher/gpu.yaml", f"{ROLLOUT}.name=sglang")
    check(config)
    assert config.actor_rollout_ref.rollout.max_model_len == 1 + config.data.max_prompt_length + config.data.max_response_length


def test_the_context_that_rope_scaling_extends_can_be_said():
    check(
        composed(
            "quickstart/train.yaml",
            "data.max_response_length=1000",
            f"{ROLLOUT}.max_model_len=null",
            "+actor_rollout_ref.model.override_config.max_position_embeddings=4096",
        )
    )


def test_a_nested_text_configuration_has_its_context_read(tmp_path):
    text = {"model_type": "qwen2_5_vl_text", "max_position_embeddings": 300}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": text}))
    with pytest.raises(ConfigError, match="more than the 300 positions"):
        check(composed("quickstart/train.yaml", f"actor_rollout_ref.model.path={tmp_path}"))


@pytest.mark.parametrize(
    ("recipe", "overrides", "length"),
    [
        ("quickstart/train.yaml", [f"{ROLLOUT}.max_model_len=null"], 464),
        ("search_r1/gpu.yaml", ["actor_rollout_ref.model.path=/nowhere"], 2048 + 4500),
        ("r1_searcher_pp/gpu.yaml", ["actor_rollout_ref.model.path=/nowhere"], 1024 + 8192 + 512),  # and room to rewrite a path
        ("r1_searcher_pp/cpu.yaml", [f"{ROLLOUT}.max_model_len=null"], 464),  # its paths are extracted, not sampled
    ],
)
def test_the_engine_reserves_memory_for_a_trajectory_not_for_the_models_whole_context(recipe, overrides, length, capsys):
    config = composed(recipe, *overrides)
    check(config)
    assert config.actor_rollout_ref.rollout.max_model_len == length
    assert f"max_model_len is {length}" in capsys.readouterr().out


def mini_batches(config, lengths: list[int], rank: int = 0) -> list[list[int]]:
    """Return the lengths of the rows of each update that verl's trainer and worker make of rows that stand in order of length."""
    from tensordict import TensorDict
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils import tensordict_utils as tu

    asked = {}

    class Workers:
        def update_actor(self, batch):
            asked.update(batch.extra_info)
            return TensorDict({}, batch_size=[])

    trainer = SimpleNamespace(config=config, actor_rollout_wg=Workers(), distillation_config=None)
    with pytest.raises(KeyError):  # of the metrics that these workers do not send back
        PPOTrainer._update_actor(trainer, SimpleNamespace(extra_info={}), {})  # type: ignore[arg-type]
    ids = torch.nested.as_nested_tensor([torch.zeros(length) for length in lengths], layout=torch.jagged)
    rows = tu.get_tensordict({"input_ids": ids, "length": torch.tensor(lengths)})
    made = tu.make_iterator(
        rows, mini_batch_size=asked["mini_batch_size"], epochs=asked["epochs"], seed=asked["seed"] + rank,
        dataloader_kwargs=asked["dataloader_kwargs"],
    )  # fmt: skip
    return [batch["length"].tolist() for batch in made]


def test_updates_of_one_batch_see_short_and_long_rollouts_alike_and_the_same_at_every_start():
    lengths = list(range(1, 64 * 16 + 1))
    config = composed("r1_searcher/gpu.yaml", "actor_rollout_ref.model.path=/nowhere")
    means = [sum(batch) / len(batch) for batch in mini_batches(config, lengths)]
    assert len(means) == 4
    assert max(means) < 1.2 * min(means)
    assert mini_batches(config, lengths) == mini_batches(config, lengths)
    assert mini_batches(config, lengths) != mini_batches(config, lengths, rank=1)
    assert sorted(row for batch in mini_batches(config, lengths) for row in batch) == lengths
    config.actor_rollout_ref.actor.shuffle = False
    ordered = mini_batches(config, lengths)
    assert [row for batch in ordered for row in batch] == lengths  # the reason: verl keeps the rows' order
    again = composed("r1_searcher/gpu.yaml", "actor_rollout_ref.model.path=/nowhere", f"{ACTOR}.ppo_epochs=2")
    first, second = mini_batches(again, lengths)[:4], mini_batches(again, lengths)[4:]
    assert first != second
