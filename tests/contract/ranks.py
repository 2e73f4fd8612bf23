"""verl's FSDP2 engine of the starting model on several ranks, each a process: what starts them, and what each makes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import forked

WEIGHTS = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"


def run_ranks(script: Path, ranks: int, arguments: Sequence[str]) -> None:
    """Run a script on that many ranks, as ``script RANK RANKS ARGUMENTS…``, to the end."""
    environment = {"VERL_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1"}  # which torch.compile reads whenever it is called
    processes = [forked.Process(str(script), str(rank), str(ranks), *arguments, **environment) for rank in range(ranks)]
    done = [process.wait() for process in processes]
    assert [one.returncode for one in done] == [0] * ranks, "\n".join(one.stderr[-3000:] for one in done)


def engine_of(
    rank: int, ranks: int, rendezvous: str, packed: bool = False, lora_rank: int = 0, forward_only: bool = False, **checkpoint: Any
) -> Any:  # fmt: skip
    """Return the initialised engine of one rank, with packed rows or padded ones, training all of it or a LoRA adapter.

    `forward_only`: as that of a reference model; `checkpoint`: fields of verl's `CheckpointConfig`.
    """
    import torch
    import verl.workers.engine  # noqa: F401 (registers the engines)
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.base import EngineRegistry

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    single = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = EngineRegistry.new(
        model_type="language_model", backend="fsdp2",
        model_config=HFModelConfig(
            path=str(WEIGHTS), use_remove_padding=packed, enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"}, lora_rank=lora_rank, lora_alpha=2 * lora_rank,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", model_dtype="float32", dtype="float32", mixed_precision=single, use_torch_compile=False,
            use_dynamic_bsz=False, forward_only=forward_only,
        ),
        optimizer_config=FSDPOptimizerConfig(lr=0.0), checkpoint_config=CheckpointConfig(**checkpoint),
    )  # fmt: skip
    engine.initialize()
    return engine


def gradients(engine: Any, data: Any, loss: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the gradients of one update that is not made, whole, by the parameter's name, and the update's metrics."""
    found = {}

    def read_instead_of_stepping(self):
        for name, parameter in self.module.named_parameters():
            found[name] = parameter.grad.full_tensor().clone()
        return 0.0

    step, type(engine).optimizer_step = type(engine).optimizer_step, read_instead_of_stepping
    try:
        with engine.train_mode():
            outputs = engine.train_batch(data, loss)
    finally:
        type(engine).optimizer_step = step
    return found, outputs["metrics"]
