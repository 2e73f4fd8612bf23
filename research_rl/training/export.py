"""Exports a checkpoint's shards as a Hugging Face model in bfloat16, with verl's merger, to `actor/huggingface`."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from research_rl.errors import ConfigError
from research_rl.files import write_text
from research_rl.training.merge_lora import ADAPTER, MERGED

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
Run = Callable[[Sequence[str]], int]


def run_command(command: Sequence[str]) -> int:
    """Run a command with its output on this terminal; return its exit code."""
    return subprocess.run(command, check=False).returncode


def export(actor: Path, run: Run = run_command) -> Path:
    """Return the directory of a checkpoint's model; its shards are merged if verl has not written it (`hf_model` in `save_contents`).

    The shards are in float32, the precision of training. The model is written in bfloat16, the type of engines on GPUs. A LoRA
    adapter is merged into it. An interrupted export is made anew.

    Raises:
        ConfigError: verl's merger failed.
    """
    model, part = actor / "huggingface", actor / "huggingface.part"
    # verl's own `hf_model` does not merge an adapter
    whole = (model / MERGED).is_file() or not (actor / "lora_train_meta.json").is_file()
    if not part.exists() and whole and any((model / name).is_file() for name in WEIGHTS):
        return model
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    merger = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command = [*merger, "--local_dir", str(actor), "--target_dir", str(part)]
    print(f"research_rl: exporting {model}", flush=True)
    if code := run(command):
        raise ConfigError(
            f"the shards in {actor} could not be merged into a model (exit code {code}); to see why, run: {shlex.join(command)}"
        )
    if (part / ADAPTER).is_dir() and (code := run([sys.executable, "-m", "research_rl.training.merge_lora", str(part)])):
        raise ConfigError(
            f"the LoRA adapter of {actor} could not be merged into its model (exit code {code}); both are in {part}"
        )
    model.mkdir(exist_ok=True)
    for file in part.iterdir():
        file.replace(model / file.name)
    part.rmdir()
    return model


def say_dtype(model: Path) -> None:
    """Write the type of a model's weights into its configuration. verl names bfloat16 there, but writes the weights in the type of
    training, and libraries load the type that the configuration names. A directory without weights is left as it is."""
    from safetensors import safe_open

    for file in sorted(model.glob("model*.safetensors"))[:1]:
        with safe_open(file, "pt") as weights:  # type: ignore[attr-defined]  # a compiled class
            dtype = str(weights.get_tensor(next(iter(weights.keys()))).dtype).removeprefix("torch.")
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        write_text(model / "config.json", json.dumps({**config, "dtype": dtype}, indent=2))
