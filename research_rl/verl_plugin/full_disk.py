"""A checkpoint for which the disk had no room: torch reports it as "file write failed", without a word about the disk."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

from research_rl.training.jobs import last_step

MIB = 2**20
LITTLE = 64 * MIB  # bytes: with less, a disk counts as full where no checkpoint tells how much one needs
NO_ROOM = ("No space left on device", "Disk quota exceeded")


def full_disk(checkpoints: Path, error: BaseException) -> str | None:
    """Return what to tell of an error of the trainer if the disk of `checkpoints` was too full for one; None for any other error."""
    if (
        not any(frame.name == "_save_checkpoint" for frame in traceback.extract_tb(error.__traceback__))
        or not checkpoints.is_dir()
    ):
        return None
    step, free = last_step(checkpoints), shutil.disk_usage(checkpoints).free
    whole = checkpoints / f"global_step_{step}"
    size = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    if free >= max(LITTLE, size) and not any(text in str(error) for text in NO_ROOM):
        return None
    takes = f", and one takes {size / MIB:,.0f} MiB" if size else ""
    kept = f"That of step {step} is whole." if step is not None else "None has been written before."
    return (
        f"No checkpoint could be written: the disk of {checkpoints} has {free / MIB:,.0f} MiB left{takes}. {kept} Make room there, or keep "
        "fewer checkpoints (trainer.max_actor_ckpt_to_keep)."
    )
