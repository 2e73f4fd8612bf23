"""Run by test_export.py, one process per rank: a checkpoint as verl's FSDP2 engine saves it.

Arguments: rank, ranks, rendezvous file, directory to save to, contents (comma-separated).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import verl.workers.engine  # noqa: F401 (registers the engines)
from verl.trainer.config import CheckpointConfig
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.base import EngineRegistry

WEIGHTS = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"


def main(rank: int, ranks: int, rendezvous: str, out: str, contents: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    single = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = EngineRegistry.new(
        model_type="language_model", backend="fsdp2",
        model_config=HFModelConfig(
            path=str(WEIGHTS), use_remove_padding=False, enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", model_dtype="float32", dtype="float32", mixed_precision=single, use_torch_compile=False,
            use_dynamic_bsz=False,
        ),
        optimizer_config=FSDPOptimizerConfig(lr=0.0), checkpoint_config=CheckpointConfig(save_contents=contents.split(",")),
    )  # fmt: skip
    engine.initialize()
    engine.save_checkpoint(out, global_step=1)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
