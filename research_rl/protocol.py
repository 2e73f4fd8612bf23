"""The protocol that a checkpoint speaks: read back from the manifest that training wrote beside it (`research_rl.json`)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError
from research_rl.methods.base import Method, load_method
from research_rl.types import Budget

MANIFEST = "research_rl.json"


@dataclass(frozen=True)
class Protocol:
    """Method and budgets of a checkpoint, and the ids of the indexes that it was trained over (by URL)."""

    method: Method
    budget: Budget
    indexes: dict[str, Any]


def prompt_hash(method: Method) -> str:
    """Return the SHA-256 of a method's prompt, with `$question` for the question, and of the opening of its responses."""
    prompt = method.prompt("$question")
    shown = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.sha256((shown + method.prefill).encode()).hexdigest()


def read_protocol(directory: Path) -> Protocol | None:
    """Return the protocol of the model in `directory`; None if it has no manifest (a model that was not trained here).

    A prompt file that is no longer where it was is taken from the manifest.

    Raises:
        ConfigError: the manifest is damaged, or the method has another prompt now than when the model was trained.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        options = dict(manifest["method_options"])
        budget = Budget(
            manifest["response_tokens"], manifest["max_turn_tokens"], manifest["max_searches"],
            manifest["max_observation_tokens"], manifest["top_k"],
        )  # fmt: skip
        name, expected, prompt = manifest["method"], manifest["prompt_sha256"], manifest["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no manifest of research-rl ({error!r})") from None
    method = _method(name, options, prompt, expected)
    if prompt_hash(method) != expected:
        raise ConfigError(
            f"{path}: the prompt of {name} with {options} is another than the one the model was trained with "
            f"(hash {prompt_hash(method)[:12]}, trained with {expected[:12]}); name a method by hand to ask it otherwise"
        )
    return Protocol(method, budget, dict(manifest.get("indexes") or {}))


def _method(name: str, options: dict[str, Any], prompt: Any, expected: str) -> Method:
    file = options.get("prompt_file")
    if not file or not isinstance(prompt, str):
        return load_method(name, **options)
    if Path(file).is_file():
        method = load_method(name, **options)
        if prompt_hash(method) == expected:
            return method
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "prompt.txt")
        saved.write_text(prompt.replace("$", "$$").replace("$$question", "$question"), encoding="utf-8")
        return load_method(name, **{**options, "prompt_file": str(saved)})
