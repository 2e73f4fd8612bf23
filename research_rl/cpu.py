"""Environment variables of processes that compute on a CPU."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time a period, and the period; or "max"


def fast_dtype(cpuinfo: Path = CPUINFO) -> str:
    """Return the type in which this processor multiplies matrices fastest: `bfloat16` if it has instructions for that, else `float32`.

    Without such instructions bfloat16 is converted at every product. Where there is no `cpuinfo`, it is `float32`.
    """
    # x86 and ARM each have a list of what the processor can do, under a different name
    found = {flag for line in _lines(cpuinfo) if line.startswith(("flags", "Features")) for flag in line.split()}
    return "bfloat16" if found & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cores(quota: Path = QUOTA) -> int:
    """Return how many cores this process may use: those it may run on, but no more than its container's quota of processor time allows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, _, period = next(iter(_lines(quota)), "max").partition(" ")
    return max(1, min(allowed, int(limit) // int(period))) if limit.isdigit() else allowed


def hardware() -> dict[str, str | int]:
    """Return what a summary says of this machine; an empty name where the system does not state it."""
    name = next((line.partition(":")[2].strip() for line in _lines(CPUINFO) if line.startswith("model name")), "")
    return {"cores": cores(), "processor": name, "fast_dtype": fast_dtype()}


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the system's; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


CPU_ENGINE = {  # for vLLM on a CPU, if nothing else computes at the same time
    "OMP_NUM_THREADS": str(cores()),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    # the engine computes in the process that uses it: waiting for a separate worker process would occupy a core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # gigabytes of activations are allocated and freed all the time: use one heap, which keeps its memory, with huge pages
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}

# engine and trainer take turns (but for verl's separate_async), so each may use all cores; Ray would limit a worker to one
CPU_ENVIRONMENT = CPU_ENGINE | {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "CPU_DTYPE": fast_dtype(),  # recipes read it: research_rl/config/wikipedia_cpu.yaml and sft_on_cpu.yaml
    "RAY_DEDUP_LOGS": "0",
    "HYDRA_FULL_ERROR": "1",
}

# What the processes of a training import, and those of a vLLM server, made once (research_rl/forks): they compute on the same cores, so the
# seconds of each add up. Nothing of Ray, whose core reads when it is imported which job it works for, nor of verl, which imports Ray.
VLLM_IMPORTS = (
    "vllm.engine.arg_utils",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
    "vllm.entrypoints.openai.cli_args",
    "vllm.entrypoints.openai.chat_completion.serving",
)
TRAINER_IMPORTS = (
    "transformers.generation.candidate_generator",
    "datasets",
    "tensordict",
    "peft",
    "accelerate",
    "torch.distributed.fsdp",
    "torchdata.stateful_dataloader",
)


def restart_with(environment: Mapping[str, str]) -> None:
    """Restart this program with these variables if any is missing: malloc and OpenMP read theirs only when a process starts."""
    if missing := {name: value for name, value in environment.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **missing})
