"""What verl 0.9.1's `separate_async` needs in order to run without engines on the trainer's devices, and to keep its weights apart."""

from __future__ import annotations

import logging
from typing import Any

import wrapt


class Logger(logging.LoggerAdapter):
    """A logger that takes `flush`, and ignores it."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, {name: value for name, value in kwargs.items() if name != "flush"}


def install(module: Any) -> None:
    """Replace the logger (hooked to the import of `verl.trainer.ppo.v1.trainer_separate_async`).

    With `hybrid_engine: false` verl logs a line with `flush=True`, an argument of print, and would end with a TypeError.
    """
    module.logger = Logger(module.logger)


def keep_copies(fsdp_utils: Any) -> None:
    """Make the weights that verl puts aside copies (hooked to the import of `verl.utils.fsdp_utils`).

    For the second update of a batch verl puts π_old and the newest weights aside, and restores each in turn. Where the weights are in the
    processor's memory already (on a CPU, and with `param_offload`), verl would keep the tensors themselves, which the next update changes.
    """
    wrapt.wrap_function_wrapper(fsdp_utils, "fsdp2_sharded_save_to_cpu", _copied)


def _copied(save: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    state, spec = save(*args, **kwargs)
    return {name: (tensor.clone(), its) for name, (tensor, its) in state.items()}, spec
