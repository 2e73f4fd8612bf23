"""Settings of verl's that cannot work together: verl finds some of them out after the models are loaded, and some never."""

from __future__ import annotations

from typing import Any

from omegaconf import open_dict

from research_rl.errors import ConfigError
from research_rl.training.settings import Settings
from research_rl.verl_plugin.advantages import NAME
from research_rl.verl_plugin.policy_loss_config import check_policy_loss

# estimators that compare the rollouts of a question, and those that divide by what these rollouts' rewards differ
_GROUP = {
    *("grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline"),
    *("optimal_token_baseline", "tir_optimal_token_baseline", NAME),
}
_BY_STD = {"grpo", "grpo_vectorized", "grpo_passk", "gdpo"}


def check_training(config: Any, settings: Settings) -> None:
    """Check trainer, estimator, batches and lengths; set `rollout.max_model_len` where it is null.

    Raises:
        ConfigError: something cannot work.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.name != "vllm":
        raise ConfigError(
            f"actor_rollout_ref.rollout.name must be vllm (stop strings stay in the text there), got {rollout.name!r}"
        )
    if not config.trainer.use_v1:
        raise ConfigError("trainer.use_v1 must be true: verl's older trainer knows no agent loop manager over a TransferQueue")
    _check_estimator(config)
    check_policy_loss(config.actor_rollout_ref.actor.policy_loss)
    if (kept := settings.trained_rollouts) is not None and kept >= rollout.n:
        raise ConfigError(
            f"research_rl.trained_rollouts={kept} must be less than actor_rollout_ref.rollout.n={rollout.n}, or null for all"
        )
    _check_batches(config)
    model = _model_config(config.actor_rollout_ref.model)
    _check_lengths(config, settings, model)
    if model is not None and config.trainer.device == "cpu":  # GPUs hand a tensor over that is larger
        _check_bucket(config, model)


def _check_estimator(config: Any) -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    algorithm, n = config.algorithm, config.actor_rollout_ref.rollout.n
    name = str(algorithm.adv_estimator)
    if name not in ADV_ESTIMATOR_REGISTRY:
        raise ConfigError(f"algorithm.adv_estimator={name!r} is unknown; valid: {', '.join(sorted(ADV_ESTIMATOR_REGISTRY))}")
    if name in _GROUP and n < 2:
        raise ConfigError(
            f"algorithm.adv_estimator={name} compares the rollouts of a question, and actor_rollout_ref.rollout.n={n} leaves nothing to "
            "compare: raise n, or choose reinforce_plus_plus"
        )
    if name in _BY_STD and algorithm.use_kl_in_reward and algorithm.get("norm_adv_by_std_in_grpo", True):
        raise ConfigError(
            f"algorithm.use_kl_in_reward=true does not go with adv_estimator={name}: where all rollouts of a question score alike, their "
            "rewards differ by the KL only, and dividing by that makes advantages out of noise. Put the KL into the loss: "
            "algorithm.use_kl_in_reward=false actor_rollout_ref.actor.use_kl_loss=true actor_rollout_ref.actor.kl_loss_coef=…"
        )


def _check_batches(config: Any) -> None:
    """Check what verl pads silently, or asserts at the first update."""
    actor, rollout, batch = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.data.train_batch_size
    mini, epochs = actor.ppo_mini_batch_size, actor.ppo_epochs
    if batch % mini:
        raise ConfigError(
            f"data.train_batch_size={batch} must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}: "
            "verl would fill up the last update with empty rows"
        )
    if batch // mini * epochs > 1 and not actor.shuffle:
        raise ConfigError(
            f"a batch of {batch} questions makes {batch // mini * epochs} updates, and its rows stand in the order in which they were "
            "finished, short and easy ones first: set actor_rollout_ref.actor.shuffle=true"
        )
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    engine = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if gpus % engine:
        raise ConfigError(
            f"trainer.n_gpus_per_node x nnodes = {gpus} devices cannot be shared by engines of {engine} each "
            "(actor_rollout_ref.rollout.tensor_model_parallel_size and its like)"
        )
    if actor.strategy not in ("fsdp", "fsdp2"):
        return  # others divide the devices in their own way
    ranks = gpus // _sequence_parallel(actor)
    if mini * rollout.n % ranks:
        raise ConfigError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size x rollout.n = {mini} x {rollout.n} rollouts of an update cannot be shared by "
            f"{ranks} ranks: choose a multiple"
        )
    if actor.use_dynamic_bsz:
        return
    micro_batches = (("actor", "ppo_micro_batch_size_per_gpu", mini), ("rollout", "log_prob_micro_batch_size_per_gpu", batch))
    for section, key, questions in micro_batches:
        micro, mine = config.actor_rollout_ref[section].get(key), questions * rollout.n // ranks
        if micro and mine % micro:
            raise ConfigError(f"actor_rollout_ref.{section}.{key}={micro} must divide the {mine} rollouts of a rank")


def _sequence_parallel(actor: Any) -> int:
    """Return over how many devices verl spreads one sequence; there are two keys for it."""
    engine = actor.get("fsdp_config") or {}
    return max(section.get("ulysses_sequence_parallel_size", 1) for section in (actor, engine))


def _check_lengths(config: Any, settings: Settings, model: Any) -> None:
    """Check that prompt and response fit where they must; let the engine reserve memory for them and no more."""
    actor, rollout, memory = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, settings.memory()
    need = config.data.max_prompt_length + config.data.max_response_length
    told = f"data.max_prompt_length + data.max_response_length = {need}"
    limits = [("actor", "ppo_max_token_len_per_gpu", actor), ("rollout", "log_prob_max_token_len_per_gpu", rollout)]
    for section, key, owner in limits if actor.use_dynamic_bsz else ():
        if owner[key] * _sequence_parallel(actor) < need:
            raise ConfigError(f"actor_rollout_ref.{section}.{key}={owner[key]} is less than one trajectory, {told}: raise it")
    context = _context(config.actor_rollout_ref.model, model)
    if context is not None and need > context:
        raise ConfigError(
            f"{told} is more than the {context} positions of {config.actor_rollout_ref.model.path}: lower them; if rope scaling extends "
            "it, say so by actor_rollout_ref.model.override_config.max_position_embeddings"
        )
    if rollout.max_model_len is None:  # vLLM would reserve for the whole context of the model
        room = need + (
            memory.max_tokens if memory.mu and memory.rewriter == "policy" else 0
        )  # rewriting has a prompt as long as that
        with open_dict(config):
            rollout.max_model_len = min(room, context or room)
        print(f"research_rl: actor_rollout_ref.rollout.max_model_len is {rollout.max_model_len}, from {told}")
    elif rollout.max_model_len < need or rollout.max_model_len > (context or rollout.max_model_len):
        raise ConfigError(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} must be at least {told}"
            f"{f' and at most the {context} positions of the model' if context else ''}; null lets it be set"
        )


def _check_bucket(config: Any, model: Any) -> None:
    """Check that the largest tensor fits into what weights travel to a CPU's engine in: verl finds out at the first update of weights."""
    text = model.get_text_config()
    megabytes = text.vocab_size * text.hidden_size * 4 / 2**20
    bucket = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
    if bucket < megabytes:
        raise ConfigError(
            f"actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes={bucket} holds less than the embedding of "
            f"{config.actor_rollout_ref.model.path} in float32, {text.vocab_size} x {text.hidden_size}: set {int(megabytes) + 1} or more"
        )


def _context(section: Any, model: Any) -> int | None:
    """Return how many positions verl takes the model to have, None if its configuration is not on this machine."""
    from verl.workers.rollout.utils import get_max_position_embeddings

    overridden = section.get("override_config") or {}
    overridden = overridden.get("model_config", overridden)
    if positions := overridden.get("max_position_embeddings"):
        return positions
    return None if model is None else get_max_position_embeddings(model)


def _model_config(section: Any) -> Any:
    """Return the model's configuration, None (told, with the cause) if it is not on this machine."""
    from transformers import AutoConfig

    path = section.get("hf_config_path") or section.path
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=section.get("trust_remote_code", False))
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        print(f"research_rl: no configuration of {path} here ({why}): its context and its largest tensor are not checked")
        return None
