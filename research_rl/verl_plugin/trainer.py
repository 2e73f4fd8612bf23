"""What verl's trainer logs and checks besides its own: what is being learnt, step by step, and whether a validation is whole."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import wrapt


def install(trainer_base: Any) -> None:
    """Wrap two methods of the trainer (hooked to the import of `verl.trainer.ppo.v1.trainer_base`)."""
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_compute_metrics", _compute_metrics)
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "_validate", _validate)


def _compute_metrics(compute: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    """Add the means of the batch's own figures; verl logs those of validations only."""
    done = compute(*args, **kwargs)
    if "research_rl" not in trainer.config:
        return done
    import transfer_queue as tq

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
    metrics = validate(*args, **kwargs)
    if "research_rl" in trainer.config:
        metrics["validation/search/lost_questions"] = lost = trainer.agent_loop_manager.after_validation()
        if lost:
            print(
                f"research_rl: THE VALIDATION at step {trainer.global_steps} LOST {lost} QUESTIONS to failed searches: "
                "its figures are those of the rest",
                file=sys.stderr,
            )
    return metrics
