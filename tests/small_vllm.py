"""The quickstart's starting model under a real vLLM server that takes little of the machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from research_rl.inference.engine import vllm_server

WEIGHTS = Path(__file__).parents[1] / "quickstart" / "start_model" / "weights"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def copy_model(folder: Path) -> Path:
    """Copy the model into a folder, where a test may change its tokenizer or template; return the folder."""
    for file in WEIGHTS.iterdir():
        shutil.copy(file, folder)
    return folder


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Serve a folder's model as `m` until the block ends; yield the URL. The log is `vllm.log` in the folder."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        with vllm_server(str(folder), "m", ["--dtype", "float32", *options], folder / "vllm.log") as url:
            yield url
