"""After a rollback, use the learning rate of the configuration instead of the checkpoint's (training/rollback.py)."""

from __future__ import annotations

import os
from typing import Any

import wrapt

from research_rl.training.rollback import LR_FROM_CONFIG


def install(transformer_impl: Any) -> None:
    """Wrap the function that loads a checkpoint (hooked to the import of `verl.workers.engine.fsdp.transformer_impl`)."""
    wrapt.wrap_function_wrapper(transformer_impl.FSDPEngine, "load_checkpoint", _load_checkpoint)


def _load_checkpoint(load: Any, engine: Any, args: Any, kwargs: Any) -> Any:
    """Load a checkpoint with its learning rate, then scale optimiser and schedule to the configuration's if LR_FROM_CONFIG is set."""
    done = load(*args, **kwargs)
    if os.environ.get(LR_FROM_CONFIG) == "1" and engine.lr_scheduler is not None:
        scale_to(engine.optimizer, engine.lr_scheduler, engine.optimizer_config.lr)
    return done


def scale_to(optimizer: Any, scheduler: Any, lr: float) -> None:
    """Continue a schedule from its present point with `lr` as its base. If the old base is 0, only the base is changed."""
    factors = [lr / base if base else 1.0 for base in scheduler.base_lrs]
    scheduler.base_lrs = [lr for _ in factors]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"], group["initial_lr"] = group["lr"] * factor, lr
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
