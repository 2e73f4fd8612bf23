"""Checks of a whole verl configuration, made before Ray or any accelerator is touched."""

from __future__ import annotations

import time
from typing import Any

import httpx
from omegaconf import OmegaConf, open_dict

from research_rl.errors import ConfigError, RetrievalError
from research_rl.methods.base import with_prompt_texts
from research_rl.scoring import trajectory_metrics
from research_rl.training.settings import Settings, check_sampling
from research_rl.training.stages import Until

_MANAGER = "research_rl.verl_plugin.agent_loop.SearchAgentLoopManager"


def settings_of(config: Any) -> Settings:
    """Return the checked `research_rl:` section of a verl configuration.

    Raises:
        ConfigError: it is missing or wrong.
    """
    if "research_rl" not in config:
        raise ConfigError("the configuration has no research_rl: section; start from a recipe in recipes/")
    section: Any = OmegaConf.to_container(config.research_rl, resolve=True)
    return Settings.from_mapping(section)


def chat_template_kwargs(data: Any) -> dict[str, Any]:
    """Return what a verl `data:` section wants the chat template to be told (`apply_chat_template_kwargs`)."""
    found = data.get("apply_chat_template_kwargs") or {}
    kwargs: Any = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else dict(found)
    return kwargs


def check_config(config: Any) -> None:
    """Check a recipe, date it (`research_rl.attempt`) and put the text of prompts in the place of their files: workers on other nodes
    have neither this directory nor, perhaps, these files. verl runs without a `research_rl:` section are none of our business.

    Raises:
        ConfigError: a setting cannot work.
        RetrievalError: a retrieval service that the run needs does not answer its health check.
    """
    if "research_rl" not in config:
        return
    # verl resolves ${oc.env:…} in a Ray worker, which on a cluster started before does not have this process's environment
    OmegaConf.resolve(config)
    settings = settings_of(config)
    if config.get("stages") and not settings.stage:
        raise ConfigError("this recipe has stages: run it by `python -m research_rl.train RECIPE.yaml`")
    rollout = config.actor_rollout_ref.rollout
    check_sampling(rollout.temperature, rollout.top_p, rollout.top_k)
    if rollout.agent.agent_loop_manager_class != _MANAGER:
        raise ConfigError(f"actor_rollout_ref.rollout.agent.agent_loop_manager_class must be {_MANAGER}")
    if settings.top_k * 4 > config.data.max_response_length:
        raise ConfigError(
            f"data.max_response_length={config.data.max_response_length} leaves no room for {settings.top_k} passages: it counts them too"
        )
    until = Until.from_mapping(settings.until or {})
    if until.metric and until.metric not in (names := trajectory_metrics(settings.load(), settings.load().read(""), [""])):
        raise ConfigError(f"research_rl.until.metric={until.metric!r} is unknown; valid: {', '.join(sorted(names))}")
    if (memory := settings.memory()).mu and memory.rewriter.startswith("http"):
        _check_service(memory.rewriter, "/models", "rewriter (research_rl.memorisation.rewriter)")
    sources = ["", *(settings.retrieval.get("url_by_data_source") or {})]
    for url in sorted({settings.retrieval_for(source).url for source in sources}):
        _check_service(url)
    with open_dict(config):
        config.research_rl.attempt = time.time()
        config.research_rl.method_options = with_prompt_texts(settings.method, settings.method_options or {})


def _check_service(url: str, path: str = "/health", name: str = "retrieval service") -> None:
    """Ask; any HTTP answer but a 5xx will do, since a foreign server may not have that path."""
    try:
        status = httpx.get(f"{url.rstrip('/')}{path}", timeout=10).status_code
    except httpx.TransportError as error:
        if name != "retrieval service":
            raise ConfigError(f"no {name} at {url} ({error})") from error
        raise RetrievalError(
            f"no retrieval service at {url} ({error}). Start one: rag-serving serve --index DIR --port PORT, and set RETRIEVAL_URL"
        ) from error
    if status >= 500:
        raise RetrievalError(f"the retrieval service at {url} is not ready (HTTP {status}); wait until /health answers 200")
