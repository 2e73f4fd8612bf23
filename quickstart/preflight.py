"""Checks of this machine before anything is started."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from research_rl.errors import ConfigError
from research_rl.files import changed_settings

# the peak of a run is 8 GiB in all processes (Ray, verl, vLLM, two services), and 1 GiB on disk
MEMORY_GIB, DISK_GIB = 10.0, 3.0
NEEDED = ("verl", "vllm", "ray", "torch", "flashrag", "bm25s", "uvicorn", "matplotlib", "jinja2")


def check(
    run_dir: Path, ports: tuple[int, ...], models: tuple[Path, ...], another_port: str = "make quickstart PORT=…"
) -> None:
    """Check packages, model, ports, memory and disk; `another_port`: how another one is chosen.

    Raises:
        ConfigError: names everything that is wrong, and what to do about it.
    """
    problems = []
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        problems.append(f"not installed: {', '.join(missing)}. Run it by `make quickstart`, which makes the environment")
    for model in models:
        if not (model / "config.json").is_file():
            problems.append(f"no starting model in {model}. Make it: make start-model")
    for port in ports:
        if not port_is_free(port):
            problems.append(f"port {port} is in use. End the process that has it, or choose another: {another_port}")
    memory = psutil.virtual_memory().available / 2**30
    if memory < MEMORY_GIB:
        problems.append(f"{memory:.1f} GiB of memory are available, {MEMORY_GIB:g} GiB are needed. Close other programs")
    existing = next(folder for folder in (run_dir, *run_dir.resolve().parents) if folder.exists())
    disk = shutil.disk_usage(existing).free / 2**30
    if disk < DISK_GIB:
        problems.append(f"{disk:.1f} GiB are free on the disk of {existing}, {DISK_GIB:g} GiB are needed")
    if problems:
        raise ConfigError("cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def port_is_free(port: int) -> bool:
    """Return whether a port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_same_run(run_dir: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any], target: str = "quickstart") -> None:
    """Refuse to resume a run with other settings than it was started with. `defaults`: those of settings that a run of an earlier version
    may lack; `target`: the target of make.

    Raises:
        ConfigError: the directory holds a run with other settings.
    """
    if changed := changed_settings(run_dir / "settings.json", settings, defaults):
        raise ConfigError(
            f"{run_dir} holds a run with other settings ({changed}). Start over with: make {target}-fresh, "
            f"or choose another directory: make {target} RUN_DIR=…"
        )


def remove_run(run_dir: Path) -> None:
    """Delete a run's directory, and nothing else.

    Raises:
        ConfigError: the directory is not empty, and is not a run of this project.
    """
    if not run_dir.exists():
        return
    if not (run_dir / "settings.json").is_file() and any(run_dir.iterdir()):
        raise ConfigError(f"{run_dir} is not a run (it has no settings.json): it is not deleted. Choose another RUN_DIR")
    shutil.rmtree(run_dir)
