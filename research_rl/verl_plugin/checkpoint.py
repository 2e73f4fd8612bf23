"""What is written beside every checkpoint: the protocol it was trained under; and the end of a stage, which is decided there."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from research_rl.errors import missing_extra
from research_rl.files import write_text
from research_rl.inference.protocol import MANIFEST, prompt_hash
from research_rl.training.settings import Settings
from research_rl.training.stages import ENDED, Until, reached
from research_rl.training.trajectory_log import read
from research_rl.verl_plugin.checks import chat_template_kwargs, settings_of

try:
    from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


class SearchCheckpoint(CheckpointCallback):
    """Named by `trainer.checkpoint_callback_class`; verl calls it after every checkpoint."""

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any) -> None:
        """Write the manifest, and end the training if the stage has reached what it was to reach."""
        config: Any = self.config
        settings = settings_of(config)
        text = json.dumps(manifest(config, settings, global_step), indent=1)
        write_text(Path(checkpoint_dir, MANIFEST), text)
        if (exported := Path(checkpoint_dir, "actor", "huggingface")).is_dir():
            write_text(exported / MANIFEST, text)  # it goes where the model goes
        until = Until.from_mapping(settings.until or {})
        if until.metric and settings.trajectory_dir:
            value = reached(until, read(settings.trajectory_dir))
            if value is not None:
                told = {"step": global_step, "metric": until.metric, "mean": value, "window": until.window}
                write_text(Path(config.trainer.default_local_dir, ENDED), json.dumps(told))
                print(f"research_rl: stage {settings.stage!r} ends at step {global_step}: {until.metric} is {value:.3f}")
                trainer.total_training_steps = global_step


def manifest(config: Any, settings: Settings, step: int) -> dict[str, Any]:
    """Return the protocol: what somebody needs to know to ask this checkpoint a question as it was trained to be asked."""
    method = settings.load()
    options = dict(settings.method_options or {})
    return {
        "research_rl": importlib.metadata.version("research-rl"),
        "method": settings.method,
        "method_options": options,
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
    }


def indexes(settings: Settings) -> Mapping[str, Any]:
    """Return the id of the index behind each service's URL; None where a foreign service does not tell."""
    return {url: _index_of(url) for url in _urls(settings)}


def _urls(settings: Settings) -> Iterable[str]:
    sources = ["", *(settings.retrieval.get("url_by_data_source") or {})]
    return sorted({settings.retrieval_for(source).url for source in sources})


def _index_of(url: str) -> Any:
    try:
        return httpx.get(f"{url.rstrip('/')}/readyz", timeout=5).json().get("index_id")
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
