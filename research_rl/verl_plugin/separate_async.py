"""verl's `separate_async` without engines on the trainer's devices (`hybrid_engine: false`): verl 0.9.1 ends there with a TypeError.

It logs a line with `flush=True`, an argument of print that a logger does not take.
"""

from __future__ import annotations

import logging
from typing import Any


class Logger(logging.LoggerAdapter):
    """A logger that takes `flush`, and ignores it."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, {name: value for name, value in kwargs.items() if name != "flush"}


def install(module: Any) -> None:
    """Replace the logger (hooked to the import of `verl.trainer.ppo.v1.trainer_separate_async`)."""
    module.logger = Logger(module.logger)
