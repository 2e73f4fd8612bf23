"""The supervised trainer goes on at the beginning of the next epoch from a checkpoint that was saved at the end of one.

verl 0.9.1 restores the state of the data loader, which stands at the end: the next epoch then has no batch, and is passed over in silence.
"""

from __future__ import annotations

import functools
from typing import Any


def install(module: Any) -> None:
    """Let verl's `CheckpointHandler` leave the loader alone where an epoch begins; the sampler's order depends on the epoch alone."""
    original = module.CheckpointHandler._load_dataloader_state

    @functools.wraps(original)
    def load(self: Any, checkpoint_path: str) -> None:
        if self.resume_global_step % len(self.train_dataloader):
            original(self, checkpoint_path)

    module.CheckpointHandler._load_dataloader_state = load
