"""Whether prompts, turns, observations and responses fit where they must."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import open_dict

from research_rl.types import Passage
from research_rl.verl_plugin.doctor.finding import Finding, check, error, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.training import sequence_parallel


@check("lengths", "a whole trajectory fits into the model's context and into a micro-batch")
def lengths(setup: Setup) -> Iterator[Finding]:
    """Check a trajectory against context, engine and micro-batches."""
    config = setup.config
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    need, told = _need(config)
    limits = [("actor", "ppo_max_token_len_per_gpu", actor), ("rollout", "log_prob_max_token_len_per_gpu", rollout)]
    for section, key, owner in limits if actor.use_dynamic_bsz else ():
        if owner[key] * sequence_parallel(actor) < need:
            what = f"actor_rollout_ref.{section}.{key}={owner[key]} is less than one trajectory, {told}"
            yield error(what, "", f"Raise it to {need} or more")
    context = _context(setup)
    if context is not None and need > context:
        yield error(
            f"{told} is more than the {context} positions of {setup.model_path}",
            "",
            "Lower them; if rope scaling extends it, say so by actor_rollout_ref.model.override_config.max_position_embeddings",
        )
    given, (need, told) = rollout.max_model_len, _engine_need(config)
    if given is not None and (given < need or given > (context or given)):
        positions = f" and at most the {context} positions of the model" if context else ""
        what = f"actor_rollout_ref.rollout.max_model_len={given} must be at least {told}{positions}"
        yield error(what, "", "Set it to null: then it is set to what is needed")


@check("bucket", "the largest tensor fits into what carries weights to the engine", "model")
def bucket(setup: Setup) -> Iterator[Finding]:
    """Check the buffer in which weights go to a CPU's engine (GPUs also pass larger tensors): verl would fail at the first update."""
    if setup.config.trainer.device != "cpu":
        return
    text = setup.model.get_text_config()
    megabytes = text.vocab_size * text.hidden_size * 4 / 2**20
    size = setup.config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
    if size < megabytes:
        key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
        yield error(
            f"{key}={size} holds less than the embedding of {setup.model_path} in float32, {text.vocab_size} x {text.hidden_size}",
            "",
            f"Set {int(megabytes) + 1} or more",
        )


@check("budgets", "a turn and an observation fit into a response", "settings")
def budgets(setup: Setup) -> Iterator[Finding]:
    """Check that a rollout can search at all: it ends if an observation leaves no room to go on."""
    settings, response = setup.settings, setup.config.data.max_response_length
    assert settings is not None
    if settings.top_k * 4 > response:
        what = f"data.max_response_length={response} leaves no room for {settings.top_k} passages, which are a part of it"
        yield error(what, "", "Raise it, or lower research_rl.top_k")
    observation, turn = settings.max_observation_tokens, settings.max_turn_tokens
    if observation is not None and observation >= response:
        yield error(
            "research_rl.max_observation_tokens must be less than data.max_response_length, which counts observations",
            f"{observation} and {response}",
            "Raise the response, or lower the observation",
        )
    elif observation is not None and turn is not None and turn + observation >= response:
        yield warning(
            "a turn of full length and its observation leave no room for an answer: such rollouts end without one",
            f"research_rl.max_turn_tokens={turn} + max_observation_tokens={observation}, data.max_response_length={response}",
            "Raise the response, or lower either",
        )
    if observation is not None and setup.codec:
        empty = [[Passage(str(number), "", 0.0) for number in range(settings.top_k)]]
        if (least := len(setup.codec.encode(settings.load().render(empty)))) > observation:
            yield error(
                f"research_rl.max_observation_tokens must hold the frame of an observation, {least} tokens for {settings.top_k} passages",
                observation,
                f"Raise it well above {least}, or lower research_rl.top_k",
            )


def set_engine_length(setup: Setup) -> None:
    """Set `rollout.max_model_len` if it is null: vLLM would reserve memory for the whole context of the model."""
    rollout = setup.config.actor_rollout_ref.rollout
    if rollout.max_model_len is not None or setup.settings is None:
        return
    (need, told), memory, context = _engine_need(setup.config), setup.settings.memory(), _context(setup)
    # a rewriting prompt may be as long as a trajectory
    room = need + (memory.max_tokens if memory.mu and memory.rewriter == "policy" else 0)
    with open_dict(setup.config):
        rollout.max_model_len = min(room, context or room)
    print(f"research_rl: actor_rollout_ref.rollout.max_model_len is {rollout.max_model_len}, from {told}")


def _engine_need(config: Any) -> tuple[int, str]:
    """Return the positions that the engine must have, and where the number is from."""
    need, told = _need(config)
    if config.actor_rollout_ref.rollout.name == "sglang":  # verl's server for it samples one token less than there is room for
        return need + 1, f"{told}, and one that is kept free with SGLang: {need + 1}"
    return need, told


def _need(config: Any) -> tuple[int, str]:
    need = config.data.max_prompt_length + config.data.max_response_length
    return need, f"data.max_prompt_length + data.max_response_length = {need}"


def _context(setup: Setup) -> int | None:
    """Return the model's number of positions; None if its configuration is not on this machine."""
    overridden = setup.config.actor_rollout_ref.model.get("override_config") or {}
    overridden = overridden.get("model_config", overridden)
    if positions := overridden.get("max_position_embeddings"):
        return positions
    return None if setup.model is None else setup.model.get_text_config().max_position_embeddings
