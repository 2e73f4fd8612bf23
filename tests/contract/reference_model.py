"""Run by test_cpu_engine.py: the weights of an engine that is only run forward, as a reference model is, saved by rank 0.

Arguments: rank, ranks, rendezvous file, file to save to.
"""

from __future__ import annotations

import sys

import torch
from ranks import engine_of

rank, ranks, rendezvous, out = sys.argv[1:]
engine = engine_of(int(rank), int(ranks), rendezvous, packed=True, forward_only=True)
ids = torch.arange(10, 42)[None]
with torch.no_grad():
    logits = engine.module(input_ids=ids, position_ids=torch.arange(32)[None], use_cache=False).logits
if rank == "0":
    torch.save(logits.full_tensor() if hasattr(logits, "full_tensor") else logits, out)
