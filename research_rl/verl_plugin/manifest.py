"""The manifest: the protocol that a checkpoint was trained under, written beside it and beside the model that is exported from it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from research_rl.files import write_text
from research_rl.inference.protocol import MANIFEST, prompt_hash
from research_rl.judge import JudgeSettings, template_hash
from research_rl.methods import method_defaults
from research_rl.training.export import say_dtype
from research_rl.training.jobs import last_step
from research_rl.training.rollback import rollbacks
from research_rl.training.settings import Settings
from research_rl.verl_plugin.config import chat_template_kwargs


def finish_checkpoint(config: Any, settings: Settings, step: int, checkpoint: Path) -> None:
    """Write the manifest into a checkpoint's directory and into that of the exported model, so that it goes where the model goes; and
    write the type of the weights into the model's configuration."""
    text = json.dumps(manifest(config, settings, step), indent=1)
    if (exported := checkpoint / "actor" / "huggingface").is_dir():
        write_text(exported / MANIFEST, text)
        say_dtype(exported)
    write_text(checkpoint / MANIFEST, text)


def finish_last(config: Any, settings: Settings) -> None:
    """Finish the last checkpoint of a resumed run if it has no manifest: verl records a checkpoint as the last one before it calls us, so
    that a kill in between would leave it without a manifest for ever."""
    checkpoints = Path(config.trainer.default_local_dir)
    step = last_step(checkpoints)
    last = checkpoints / f"global_step_{step}"
    if step is not None and config.trainer.resume_mode == "auto" and last.is_dir() and not (last / MANIFEST).is_file():
        finish_checkpoint(config, settings, step, last)


def manifest(config: Any, settings: Settings, step: int) -> dict[str, Any]:
    """Return the protocol: everything that is needed to ask this checkpoint a question as in training."""
    method = settings.load()
    options = dict(settings.method_options or {})
    done = rollbacks(Path(config.trainer.default_local_dir).parent)
    return {
        "research_rl": importlib.metadata.version("research-rl"),
        "method": settings.method,
        "method_options": options,
        # what the other options were: a later version may have other defaults
        "method_defaults": {name: value for name, value in method_defaults(settings.method).items() if name not in options},
        "prompt": method.prompt("$question"),
        "prompt_sha256": prompt_hash(method),
        "prefill": method.prefill,
        "bos": settings.bos,
        "chat_template_kwargs": chat_template_kwargs(config.data),
        "tags": list(method.tags),
        "stop": list(method.stop),
        "top_k": settings.top_k,
        "max_searches": settings.max_searches,
        "max_turn_tokens": settings.max_turn_tokens,
        "max_observation_tokens": settings.max_observation_tokens,
        "response_tokens": config.data.max_response_length,
        "indexes": indexes(settings),
        "stage": settings.stage,
        "step": step,
        "adv_estimator": str(config.algorithm.adv_estimator),
        "model": str(config.actor_rollout_ref.model.path),
        **({"judge": judge_of(judge)} if (judge := settings.judging()) else {}),
        **({"rollbacks": [{key: one[key] for key in ("step", "to_step", "rule", "lr")} for one in done]} if done else {}),
    }


def judge_of(judge: JudgeSettings) -> dict[str, Any]:
    """Return the judge's model and prompt, but nothing about its server."""
    return {
        "model": judge.model,
        "prompt_sha256": template_hash(judge.template()),
        "replaces": judge.replaces,
        "ask_when": judge.ask_when,
    }


def indexes(settings: Settings) -> Mapping[str, Any]:
    """Return the id of the index behind each service's URL; None if the service does not name it."""
    return {url: index_of(url) for url in settings.retrieval_urls()}


def index_of(url: str) -> Any:
    """Return the id of the index that a service serves; None if the service does not name it."""
    try:
        return httpx.get(f"{url.rstrip('/')}/readyz", timeout=5).json().get("index_id")
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
