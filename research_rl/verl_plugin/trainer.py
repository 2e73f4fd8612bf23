"""What verl's trainer logs and checks besides its own: what is being learnt, step by step, and whether a validation is whole. And how often
it looks whether a batch is there."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import wrapt

from research_rl.errors import RetrievalError

POLL_S = 0.05


def install(trainer_base: Any) -> None:
    """Wrap three methods of the trainer (hooked to the import of `verl.trainer.ppo.v1.trainer_base`)."""
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_compute_metrics", _compute_metrics)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_validate", _validate)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_build_replay_buffer", _build_replay_buffer)


def _build_replay_buffer(build: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Return verl's replay buffer, which has no setting for how often it looks for finished groups: every 2 s, a third of a small step."""
    buffer = build(*args, **kwargs)
    if "research_rl" in trainer.config:
        buffer.poll_interval = POLL_S
    return buffer


def _compute_metrics(compute: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Add the means of the batch's own figures; verl logs those of validations only."""
    done = compute(*args, **kwargs)
    if "research_rl" not in trainer.config:
        return done
    import transfer_queue as tq

    trainer.agent_loop_manager.fail_if_failed()
    batch, metrics = (*args, *(kwargs[name] for name in ("batch", "metrics") if name in kwargs))[:2]
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    metrics.update(search_metrics(row["reward_extra_info"] for row in fields.pop("extra_fields").tolist()))
    return done


def search_metrics(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the rollouts' figures (see scoring.trajectory_metrics) as ``training/search/NAME``."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {f"training/search/{name}": sum(found) / len(found) for name, found in values.items()}


def _validate(validate: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """End the run if a rollout failed for good, and tell how many questions the figures are without."""
    if "research_rl" not in trainer.config:
        return validate(*args, **kwargs)
    try:
        metrics, error = validate(*args, **kwargs), None
    except Exception as failed:  # verl fails where no rollout of a whole batch is there: the cause is in the workers
        metrics, error = {}, failed
    trainer.agent_loop_manager.fail_if_failed()
    lost = trainer.agent_loop_manager.lost_questions()
    told = f"the validation at step {trainer.global_steps} lost {lost} questions to failed searches"
    if error is not None:
        raise (RetrievalError(f"{told}, and none of a batch is left to measure") if lost else error) from error
    if lost:
        print(f"research_rl: {told}: ITS FIGURES ARE THOSE OF THE REST", file=sys.stderr)
    return {**metrics, "validation/search/lost_questions": lost}
