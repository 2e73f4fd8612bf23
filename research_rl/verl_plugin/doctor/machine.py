"""Checks that the machine has enough disk, memory and GPUs for the run, without using an accelerator."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from research_rl.cpu import CPU_ENVIRONMENT
from research_rl.verl_plugin.doctor.finding import Finding, check, error, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.size import GIB, Part, checkpoint, machine, training, width
from research_rl.verl_plugin.doctor.training import separate, sequence_parallel


@check("disk", "no checkpoints are written", "model")
def disk(setup: Setup) -> Iterator[Finding]:
    """Compare the free space with the checkpoints that will be kept, and one more, which is written before an old one is deleted."""
    config, actor = setup.config, setup.config.actor_rollout_ref.actor
    if config.trainer.save_freq > 0:
        size = checkpoint(setup.parameters, actor.checkpoint.save_contents, setup.adapter)
        key = "max_actor_ckpt_to_keep"
        yield from room_for(Path(config.trainer.default_local_dir), size, config.trainer.get(key), key)


def room_for(folder: Path, size: float, kept: int | None, key: str) -> Iterator[Finding]:
    """Compare `kept` checkpoints of `size` bytes, and one more, with the space that is free or used by the run's own checkpoints."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    count = (kept or 1) + 1
    need = count * size
    told = f"{count} checkpoints of {size / GIB:.1f} GiB in {folder}"
    if need > free + there:
        yield error(
            f"the disk must have room for {told}",
            f"{free / GIB:.1f} GiB free on the disk of {existing}",
            f"Free some space, write elsewhere (--run-dir), keep fewer (trainer.{key}), or leave the optimiser out of save_contents",
        )
    elif not kept:
        yield warning(
            f"every checkpoint is kept, {size / GIB:.1f} GiB each",
            f"{free / GIB:.1f} GiB free on the disk of {existing}",
            f"Set trainer.{key}",
        )
    else:
        yield ok(f"{told}; {free / GIB:.1f} GiB are free on the disk of {existing}")


@check("memory", "enough", "model")
def memory(setup: Setup) -> Iterator[Finding]:
    """Estimate the peak memory of a run, and compare it with the machine's."""
    config = setup.config
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    count = setup.parameters
    if config.trainer.device == "cpu":
        text, tokens = setup.model.get_text_config(), _micro_batch(config)
        checkpointed = bool(config.actor_rollout_ref.model.enable_gradient_checkpointing)
        space = os.environ.get("VLLM_CPU_KVCACHE_SPACE") or CPU_ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"]
        parts = machine(count, text, tokens, checkpointed, (width(rollout.dtype), float(space) * GIB), separate(config))
        yield from on_this_machine(parts, f"{_ACTOR_TOKENS} (now {tokens:,})", setup)
        return
    ranks = max(1, config.trainer.n_gpus_per_node * config.trainer.nnodes)
    weights = count * width(rollout.dtype, 2) / rollout.tensor_model_parallel_size
    trained = setup.adapter or count
    resident = 0.0 if actor.fsdp_config.param_offload else count * 4 / ranks
    resident += 0.0 if actor.fsdp_config.optimizer_offload else trained * 8 / ranks
    engine = Part("engine's weights", f"{count / 1e6:,.0f} M parameters / tensor_model_parallel_size", weights)
    yield from _on_gpus(setup, on_a_gpu(setup), engine, resident)


def on_a_gpu(setup: Setup) -> list[Part]:
    """Return what a GPU holds in an update, during which the engine holds no memory. The model's configuration must be on this machine."""
    config = setup.config
    model, trainer = config.actor_rollout_ref.model, config.trainer
    ranks = max(1, trainer.n_gpus_per_node * trainer.nnodes)
    return training(
        setup.parameters, setup.model.get_text_config(), _micro_batch(config), ranks,
        bool(model.enable_gradient_checkpointing), setup.adapter, bool(model.use_fused_kernels),
    )  # fmt: skip  # many arguments


_ACTOR_TOKENS = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"


def _micro_batch(config: Any) -> int:
    """Return the largest number of tokens that a rank processes at once."""
    actor, length = config.actor_rollout_ref.actor, config.data.max_prompt_length + config.data.max_response_length
    whole = actor.ppo_max_token_len_per_gpu if actor.use_dynamic_bsz else (actor.ppo_micro_batch_size_per_gpu or 1) * length
    all_rows = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n * length
    return min(whole, all_rows) // sequence_parallel(actor)


def on_this_machine(parts: list[Part], key: str, setup: Setup) -> Iterator[Finding]:
    """Compare an estimate with the memory of this machine."""
    need, found = sum(part.size for part in parts), setup.measured.setdefault("memory", psutil.virtual_memory())
    told = f"about {need / GIB:.1f} GiB at the peak of all processes: {', '.join(map(str, parts))}"
    here = f"{found.total / GIB:.1f} GiB, of which {found.available / GIB:.1f} are available"
    if parts[0].size > found.total:
        yield error(f"memory must hold {parts[0]}", here, "Take a smaller model, or another machine")
    elif need > found.available:
        yield warning(f"the run needs {told}", here, f"End other programs, or lower {key}")
    else:
        yield ok(f"{told}; the machine has {here}")


def _on_gpus(setup: Setup, parts: list[Part], engine: Part, resident: float) -> Iterator[Finding]:
    if "gpus" not in setup.measured:
        setup.measured["gpus"] = gpus()
    config, found = setup.config, setup.measured["gpus"]
    wanted, which = config.trainer.n_gpus_per_node, "trainer.n_gpus_per_node"
    alone = separate(config) and not config.actor_rollout_ref.hybrid_engine  # engine and trainer share no GPU
    if separate(config) and config.trainer.nnodes == 1 and config.actor_rollout_ref.rollout.nnodes == 1:
        wanted, which = (
            wanted + config.actor_rollout_ref.rollout.n_gpus_per_node,
            f"{which} + actor_rollout_ref.rollout.n_gpus_per_node",
        )
    utilisation = config.actor_rollout_ref.rollout.gpu_memory_utilization
    peak = sum(part.size for part in parts)
    told = f"about {peak / GIB:.1f} GiB a GPU in an update: {', '.join(map(str, parts))}; {engine}"
    if not found:
        yield ok(f"{told}. No nvidia-smi here: number and memory of GPUs are not checked")
        return
    if len(found) < wanted:
        yield error(
            f"{which}={wanted} GPUs are needed",
            f"{len(found)} by nvidia-smi",
            "Lower it, or take another machine",
        )
    least = min(found)
    cache = utilisation * least - engine.size
    if cache <= 0:
        yield error(
            "actor_rollout_ref.rollout.gpu_memory_utilization must leave room for a KV cache beside the engine's weights",
            f"{utilisation} x {least / GIB:.0f} GiB; {engine}",
            "Raise it, or tensor_model_parallel_size",
        )
    if parts[0].size > least:
        yield error(f"a GPU must hold {parts[0]}", f"{least / GIB:.0f} GiB", "Take more GPUs, or a smaller model")
    elif peak > least or (not alone and utilisation * least + resident > least):
        yield warning(
            f"the run needs {told}; {resident / GIB:.1f} GiB stay beside the engine",
            f"{least / GIB:.0f} GiB a GPU",
            f"Lower {_ACTOR_TOKENS} or gpu_memory_utilization, or offload (actor.fsdp_config.param_offload, optimizer_offload)",
        )
    else:
        yield ok(f"{told}; KV cache {cache / GIB:.1f} GiB; a GPU has {least / GIB:.0f} GiB")


def gpus() -> list[float]:
    """Return the memory of each GPU in bytes, from nvidia-smi; an empty list without it."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        ).stdout
        return [float(line) * 2**20 for line in told.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
