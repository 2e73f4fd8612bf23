"""The environment of what computes on a CPU."""

import os
import sys
from collections.abc import Mapping

CPU_ENGINE = {  # the environment of vLLM on a CPU, where nothing else computes meanwhile
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    # the engine computes in its own process: with a worker of its own, it takes a core to wait for it
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # activations come and go by the gigabyte: one heap that keeps its pages, and has large ones
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


def restart_with(environment: Mapping[str, str]) -> None:
    """Run this program again if the environment lacks some of these variables: malloc and OpenMP read theirs at the start."""
    if missing := {name: value for name, value in environment.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **missing})
