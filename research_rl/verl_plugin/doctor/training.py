"""Checks verl's settings for combinations that cannot work: verl notices some of them only after loading the models, and some never."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

from research_rl.errors import ConfigError
from research_rl.scoring import trajectory_metrics
from research_rl.training.health import Health
from research_rl.verl_plugin.advantages import NAME
from research_rl.verl_plugin.doctor.finding import Finding, check, error, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.generation import ENGINES
from research_rl.verl_plugin.health import check_health
from research_rl.verl_plugin.hooks import registered

MANAGER = "research_rl.verl_plugin.agent_manager.SearchAgentLoopManager"
# estimators that compare the rollouts of a question, and those of them that divide by the standard deviation of their rewards
_GROUP = {
    *("grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline"),
    *("optimal_token_baseline", "tir_optimal_token_baseline", NAME),
}
_BY_STD = {"grpo", "grpo_vectorized", "grpo_passk", "gdpo"}
_LLDS_GATES = ("action", "response")  # see policy_loss.llds_penalty
_CLIP = 0.2  # verl's default of clip_ratio, clip_ratio_low and clip_ratio_high
_CORE = "verl.trainer.ppo.core_algos"
_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@check("trainer", "verl's trainer, engine and agent loop are those that the rollout needs")
def trainer(setup: Setup) -> Iterator[Finding]:
    """Check the settings that the rollout depends on."""
    rollout = setup.config.actor_rollout_ref.rollout
    if rollout.agent.agent_loop_manager_class != MANAGER:
        what = f"{_ROLLOUT}.agent.agent_loop_manager_class must be {MANAGER}"
        yield error(what, repr(rollout.agent.agent_loop_manager_class), "Leave it out")
    if rollout.name not in ENGINES:
        what = f"{_ROLLOUT}.name must be one of {', '.join(ENGINES)} (turns end at stop strings, which stay in the text there)"
        yield error(what, repr(rollout.name), "Leave it as research_rl/config/research_rl.yaml has it")
    elif not importlib.util.find_spec(rollout.name):  # a warning, because the head of a cluster need not have it
        how = "docs/howto/sglang.md" if rollout.name == "sglang" else "pip install 'research-rl[gpu]'"
        yield warning(
            f"the engine of {_ROLLOUT}.name={rollout.name} is not installed on this machine", "", f"If it runs here: {how}"
        )
    if rollout.name == "sglang" and rollout.skip_tokenizer_init:
        what = f"{_ROLLOUT}.skip_tokenizer_init must be false with SGLang, which needs its tokenizer to find stop strings"
        yield error(what, "true", "Leave it as research_rl/config/research_rl.yaml has it")
    if rollout.name == "sglang" and setup.config.trainer.device == "cpu":
        yield error(
            f"{_ROLLOUT}.name must be vllm on a CPU", "'sglang'", "Leave it as research_rl/config/research_rl.yaml has it"
        )
    if (setup.config.get("distillation") or {}).get("enabled"):
        what = "distillation.enabled must be false: the rollout asks no teacher"
        yield error(what, "true", "Leave it out")
    if setup.config.reward.reward_model.get("enable"):
        what = "reward.reward_model.enable must be false: rewards are the method's, and verl's reward model is never asked"
        yield error(what, "true", "Leave it out; a language model as reward is research_rl.judge (docs/judge.md)")
    if not setup.config.trainer.use_v1:
        what = "trainer.use_v1 must be true: verl's older trainer has no agent loop manager over a TransferQueue"
        yield error(what, "false", "Leave it out")


@check("estimator", "the advantage estimator suits the rollouts and the KL")
def estimator(setup: Setup) -> Iterator[Finding]:
    """Check that the advantage estimator suits the number of rollouts and the KL."""
    algorithm, n = setup.config.algorithm, setup.config.actor_rollout_ref.rollout.n
    name = str(algorithm.adv_estimator)
    if name != NAME and (valid := _valid_unless(name, "register_adv_est", "ADV_ESTIMATOR_REGISTRY")):
        yield error(f"algorithm.adv_estimator={name!r} is unknown; valid: {', '.join(valid)}", "", "Choose one of these")
    if name in _GROUP and n < 2:
        yield error(
            f"algorithm.adv_estimator={name} compares the rollouts of a question, and {_ROLLOUT}.n={n} leaves nothing to compare",
            "",
            "Raise n, or choose reinforce_plus_plus",
        )
    if name in _BY_STD and algorithm.use_kl_in_reward and algorithm.get("norm_adv_by_std_in_grpo", True):
        yield error(
            f"algorithm.use_kl_in_reward=true does not go with adv_estimator={name}: where all rollouts of a question score alike, their "
            "rewards differ by the KL only, and dividing by that makes advantages out of noise",
            "",
            f"Put the KL into the loss: algorithm.use_kl_in_reward=false {_ACTOR}.use_kl_loss=true {_ACTOR}.kl_loss_coef=…",
        )
    kept = setup.section.get("trained_rollouts")
    if isinstance(kept, int) and kept >= n:
        what = f"research_rl.trained_rollouts={kept} must be less than {_ROLLOUT}.n={n}, or null for all"
        yield error(what, "", "Lower it, or raise n")


@check("policy loss", "the policy loss is known, and its settings are right")
def policy_loss(setup: Setup) -> Iterator[Finding]:
    """Check the policy loss, the settings of LLDS, and the loss's bounds."""
    actor = setup.config.actor_rollout_ref.actor
    check_policy_loss(actor.policy_loss)
    if actor.clip_ratio != _CLIP and actor.clip_ratio_low == actor.clip_ratio_high == _CLIP:
        yield error(
            f"{_ACTOR}.clip_ratio={actor.clip_ratio} has no effect: verl clips by clip_ratio_low and clip_ratio_high, both {_CLIP}",
            "",
            f"Set {_ACTOR}.clip_ratio_low and {_ACTOR}.clip_ratio_high",
        )
    batch = setup.config.data.train_batch_size
    one_update = batch <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1
    if actor.policy_loss.get("loss_mode") == "llds" and one_update and not setup.bypass:
        yield warning(
            "llds has no effect: it acts on actions that have become less likely since they were sampled, and at the first update of a "
            "batch none has",
            f"one update per batch (data.train_batch_size={batch}, {_ACTOR}.ppo_mini_batch_size={actor.ppo_mini_batch_size})",
            f"Lower {_ACTOR}.ppo_mini_batch_size, for example to {max(1, batch // 2)}",
        )


def check_policy_loss(section: Any) -> None:
    """Check the name of the loss and the settings of LLDS; verl would notice a mistake at the first update only.

    Raises:
        ConfigError: one is unknown, or λ is negative.
    """
    key, name = "actor_rollout_ref.actor.policy_loss", section.get("loss_mode", "vanilla")
    if name != "llds" and (valid := _valid_unless(name, "register_policy_loss", "POLICY_LOSS_REGISTRY")):
        raise ConfigError(f"{key}.loss_mode={name!r} is unknown; valid: {', '.join(valid)}")
    coefficient, gate = section.get("llds_lambda", 0.1), section.get("llds_gate", "action")
    if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)) or not coefficient >= 0:
        raise ConfigError(f"{key}.llds_lambda must be a number, 0 or more, got {coefficient!r}")
    if gate not in _LLDS_GATES:
        raise ConfigError(f"{key}.llds_gate={gate!r} is unknown; valid: {', '.join(_LLDS_GATES)}")


def _valid_unless(name: str, decorator: str, registry: str) -> list[str]:
    """Return the valid names if a name is not one of them: of verl's own in its source, or in its registry, to which others may add."""
    if name in registered(_CORE, decorator):
        return []
    found = getattr(importlib.import_module(_CORE), registry)  # takes seconds
    return [] if name in found else sorted(found)


@check("dynamic sampling", "dynamic sampling uses a metric that rollouts have, or is off", "settings")
def dynamic_sampling(setup: Setup) -> Iterator[Finding]:
    """Check the metric of dynamic sampling: verl would notice a wrong one at the first batch only."""
    chosen, settings = setup.config.algorithm.filter_groups, setup.settings
    assert settings is not None
    if not chosen.enable:
        return
    method = settings.load()
    names = ["reward", *sorted(trajectory_metrics(method, method.read(""), [""]))]
    if chosen.metric not in names:
        key = "algorithm.filter_groups.metric"
        yield error(f"{key}={chosen.metric!r} is unknown; valid: {', '.join(names)}", "", f"Set {key}=reward")


@check("health", "the health rules can be followed", "settings")
def health(setup: Setup) -> Iterable[Finding]:
    """Check the rules, and that a run can be rolled back if a rule demands it."""
    assert setup.settings is not None
    check_health(setup.config, Health.from_mapping(setup.settings.health or {}))
    return ()


@check("batches", "batches, updates, ranks and engines divide evenly")
def batches(setup: Setup) -> Iterator[Finding]:
    """Check what verl would pad silently, or assert at the first update."""
    config = setup.config
    actor, rollout, batch = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.data.train_batch_size
    mini, epochs = actor.ppo_mini_batch_size, actor.ppo_epochs
    if batch % mini:
        yield error(
            f"data.train_batch_size={batch} must be a multiple of {_ACTOR}.ppo_mini_batch_size={mini}: verl would fill up the last update "
            "with empty rows",
            "",
            f"Set {_ACTOR}.ppo_mini_batch_size={batch}, or a divisor of it",
        )
    if (updates := batch // mini * epochs) > 1 and not actor.shuffle:
        yield error(
            f"a batch of {batch} questions makes {updates} updates, and its rows are in the order in which they were finished, short and "
            "easy ones first",
            "",
            f"Set {_ACTOR}.shuffle=true",
        )
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    engines = {"trainer": gpus}
    if separate(config):
        yield from _separate(config, batch, mini)
        engines = {
            **(engines if config.actor_rollout_ref.hybrid_engine else {}),
            _ROLLOUT: rollout.nnodes * rollout.n_gpus_per_node,
        }
    engine = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    for section, devices in engines.items():
        if devices % engine:
            yield error(
                f"{section}.n_gpus_per_node x nnodes = {devices} devices cannot be shared by engines of {engine} each",
                "",
                f"Lower {_ROLLOUT}.tensor_model_parallel_size (or its like), or take another number of devices",
            )
    if actor.strategy in ("fsdp", "fsdp2"):  # other strategies divide the devices in their own way
        yield from _ranks(config, max(1, gpus // sequence_parallel(actor)))


def separate(config: Any) -> bool:
    """Return whether engines have devices of their own."""
    return config.trainer.v1.trainer_mode == "separate_async"


def _separate(config: Any, batch: int, mini: int) -> Iterator[Finding]:
    """Check what verl asserts of engines on devices of their own, and what it would pass over."""
    key, rollout = "trainer.v1.separate_async.parameter_sync_step", config.actor_rollout_ref.rollout
    steps = config.trainer.v1.separate_async.parameter_sync_step
    if steps is not None and batch != steps * mini:
        what = f"{key} x {_ACTOR}.ppo_mini_batch_size must be data.train_batch_size={batch} with trainer_mode=separate_async"
        yield error(what, f"{steps} x {mini}", f"Set {key}=null, which is {max(1, batch // mini)} here")
    bypass = (config.algorithm.get("rollout_correction") or {}).get("bypass_mode")
    if config.trainer.device == "cpu" and batch > mini and not bypass:
        what = f"{_ACTOR}.ppo_mini_batch_size must be data.train_batch_size={batch} with separate_async on a CPU: verl cannot put aside "
        yield error(
            f"{what}weights that are not sharded between two updates of a batch", f"{mini}", "Set it so, or use bypass_mode"
        )
    if rollout.nnodes < 1 or rollout.n_gpus_per_node < 1:
        what = f"{_ROLLOUT}.nnodes and n_gpus_per_node must name the engines' own devices with trainer_mode=separate_async"
        yield error(
            what, f"{rollout.nnodes} and {rollout.n_gpus_per_node}", "Use +algorithm_option=[separate_async], or set both"
        )
    if rollout.checkpoint_engine.backend == "naive":
        what = f"{_ROLLOUT}.checkpoint_engine.backend must carry weights to other devices with trainer_mode=separate_async"
        yield error(what, "'naive'", "Use +algorithm_option=[separate_async], or set it to nccl")
    if rollout.checkpoint_engine.backend == "nccl" and config.trainer.device != "cpu" and not importlib.util.find_spec("cupy"):
        what = f"{_ROLLOUT}.checkpoint_engine.backend=nccl needs cupy, which is not installed on this machine"
        yield warning(
            what, "", "If trainer or engines run here: pip install cupy-cuda12x or cupy-cuda13x, whichever CUDA torch has"
        )
    model = config.actor_rollout_ref.model
    if (model.get("lora_rank") or model.get("lora_adapter_path")) and not (model.get("lora") or {}).get("merge"):
        what = "trainer_mode=separate_async would carry the frozen weights to the engines, and not the LoRA adapter"
        yield error(
            what, f"actor_rollout_ref.model.lora_rank={model.lora_rank}", "Use sync or colocate_async, or train all weights"
        )


def set_sync_step(config: Any) -> None:
    """Set `separate_async.parameter_sync_step` if it is null: verl takes only the number of updates per batch."""
    section = config.trainer.v1.separate_async
    if section.parameter_sync_step is None:
        section.parameter_sync_step = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size


def _ranks(config: Any, ranks: int) -> Iterator[Finding]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    mini, batch = actor.ppo_mini_batch_size, config.data.train_batch_size
    if mini * rollout.n % ranks:
        yield error(
            f"{_ACTOR}.ppo_mini_batch_size x rollout.n = {mini} x {rollout.n} rollouts of an update cannot be shared by {ranks} ranks",
            "",
            "Choose a multiple",
        )
    if actor.use_dynamic_bsz:
        return
    micro_batches = (("actor", "ppo_micro_batch_size_per_gpu", mini), ("rollout", "log_prob_micro_batch_size_per_gpu", batch))
    for section, key, questions in micro_batches:
        micro, mine = config.actor_rollout_ref[section].get(key), questions * rollout.n // ranks
        if micro and mine % micro:
            what = f"actor_rollout_ref.{section}.{key}={micro} must divide the {mine} rollouts of a rank"
            yield error(what, "", "Choose a divisor")


def sequence_parallel(actor: Any) -> int:
    """Return the number of devices over which verl spreads one sequence; verl has two keys for it."""
    engine = actor.get("fsdp_config") or {}
    return max(section.get("ulysses_sequence_parallel_size", 1) for section in (actor, engine))
