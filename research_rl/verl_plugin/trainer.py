"""Extends verl's trainer: it logs figures of rollouts and health after every step, checks that a validation is complete, and looks more
often for finished groups."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import wrapt

from research_rl.errors import RetrievalError
from research_rl.health import RolloutHealth, by_name, step_health
from research_rl.verl_plugin.health import monitor_of
from research_rl.verl_plugin.judging import tell_unjudged

HEALTH = "health"  # the field of a rollout with its RolloutHealth, as a mapping
POLL_S = 0.05  # seconds


def install(trainer_base: Any) -> None:
    """Wrap four methods of the trainer (hooked to the import of `verl.trainer.ppo.v1.trainer_base`)."""
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "step", _step)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_compute_metrics", _compute_metrics)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_validate", _validate)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_build_replay_buffer", _build_replay_buffer)


def _build_replay_buffer(build: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Return verl's replay buffer, which looks for finished groups every 2 s (a third of a small step) and has no setting for it."""
    buffer = build(*args, **kwargs)
    if "research_rl" in trainer.config:
        buffer.poll_interval = POLL_S
    return buffer


def _step(step: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Add the figures of the batch's rollouts, which verl logs for validations only, and apply the health rules to the step."""
    batch = step(*args, **kwargs)
    if "research_rl" not in trainer.config:
        return batch
    import transfer_queue as tq

    metrics = args[0] if args else kwargs["metrics"]
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    rows = fields.pop("extra_fields").tolist()
    metrics.update(search_metrics(row["reward_extra_info"] for row in rows))
    metrics.update(step_health([RolloutHealth(**row[HEALTH]) for row in rows if HEALTH in row]))
    metrics["health/lost_groups"] = trainer.agent_loop_manager.lost_questions(validate=False)
    monitor_of(trainer).judge(metrics)
    tell_unjudged(trainer, validate=False)
    return batch


def _compute_metrics(compute: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """End the run if a rollout failed for good."""
    done = compute(*args, **kwargs)
    if "research_rl" in trainer.config:
        trainer.agent_loop_manager.fail_if_failed()
    return done


def search_metrics(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the rollouts' figures (see scoring.trajectory_metrics) as ``training/search/NAME``."""
    return {f"training/search/{name}": sum(found) / len(found) for name, found in by_name(rows).items()}


def _validate(validate: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """End the run if a rollout failed for good, and report how many questions are missing in the figures."""
    if "research_rl" not in trainer.config:
        return validate(*args, **kwargs)
    try:
        metrics, error = validate(*args, **kwargs), None
    except Exception as failed:  # verl fails if a batch has no rollout at all: the cause is in the workers
        metrics, error = {}, failed
    trainer.agent_loop_manager.fail_if_failed()
    lost = trainer.agent_loop_manager.lost_questions()
    told = f"the validation at step {trainer.global_steps} lost {lost} questions to failed searches"
    if error is not None:
        raise (RetrievalError(f"{told}, so that no rollout of a batch is left to measure") if lost else error) from error
    if lost:
        print(f"research_rl: {told}: ITS FIGURES ARE WITHOUT THEM", file=sys.stderr)
    tell_unjudged(trainer, validate=True)
    return {**metrics, "validation/search/lost_questions": lost}
