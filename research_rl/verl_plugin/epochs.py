"""Lets the supervised trainer resume at the beginning of the next epoch from a checkpoint that was saved at the end of one.

verl 0.9.1 restores the state of the data loader, which is exhausted then: the next epoch has no batch, and is skipped silently.
"""

from __future__ import annotations

import functools
from typing import Any


def install(module: Any) -> None:
    """Make verl's `CheckpointHandler` not restore the loader if an epoch begins; the sampler's order depends on the epoch only."""
    original = module.CheckpointHandler._load_dataloader_state

    @functools.wraps(original)
    def load(self: Any, checkpoint_path: str) -> None:
        if self.resume_global_step % len(self.train_dataloader):
            original(self, checkpoint_path)

    module.CheckpointHandler._load_dataloader_state = load
