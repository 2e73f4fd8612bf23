"""Run by test_export.py, one process per rank: a checkpoint as verl's FSDP2 engine saves it.

Arguments: rank, ranks, rendezvous file, directory to save to, contents (comma-separated).
"""

from __future__ import annotations

import sys

import torch
from ranks import engine_of


def main(rank: int, ranks: int, rendezvous: str, out: str, contents: str) -> None:
    engine_of(rank, ranks, rendezvous, save_contents=contents.split(",")).save_checkpoint(out, global_step=1)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
