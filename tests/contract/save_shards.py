"""Run by test_export.py, one process per rank: a checkpoint as verl's FSDP2 engine saves it.

Arguments: rank, ranks, rendezvous file, directory to save to, contents (comma-separated), LoRA rank (0: none). An adapter is
filled with numbers, which go to `adapter.pt` as well: a fresh one changes nothing.
"""

from __future__ import annotations

import sys

import torch
from ranks import engine_of


def main(rank: int, ranks: int, rendezvous: str, out: str, contents: str, lora_rank: str) -> None:
    engine = engine_of(rank, ranks, rendezvous, lora_rank=int(lora_rank), save_contents=contents.split(","))
    adapter = {}
    torch.manual_seed(1)
    for name, parameter in engine.module.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.normal_(std=0.1)
            adapter[name] = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    engine.save_checkpoint(out, global_step=1)
    if adapter and rank == 0:
        torch.save(adapter, f"{out}/adapter.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
