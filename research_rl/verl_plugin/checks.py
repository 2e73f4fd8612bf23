"""Checks of a whole verl configuration, made before Ray or any accelerator is touched."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx
from omegaconf import OmegaConf, open_dict

from research_rl.errors import ConfigError, RetrievalError
from research_rl.methods.base import with_prompt_texts
from research_rl.scoring import trajectory_metrics
from research_rl.training.health import Health
from research_rl.training.rollback import LR_FROM_CONFIG
from research_rl.training.settings import check_sampling
from research_rl.training.stages import Until
from research_rl.training.train import CPU_ENVIRONMENT
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.coverage import tell_coverage
from research_rl.verl_plugin.data_checks import check_data
from research_rl.verl_plugin.health import check_health
from research_rl.verl_plugin.manifest import finish_last
from research_rl.verl_plugin.resuming import measure_once
from research_rl.verl_plugin.same_index import fix_index
from research_rl.verl_plugin.training_checks import check_training

CARRIED = (
    "TENSORBOARD_DIR",
    "VERL_FILE_LOGGER_PATH",
    "VERL_FILE_LOGGER_ROOT",
    "WANDB_MODE",
    "WANDB_DIR",
    LR_FROM_CONFIG,
    *CPU_ENVIRONMENT,
)
_MANAGER = "research_rl.verl_plugin.agent_loop.SearchAgentLoopManager"


def check_config(config: Any) -> None:
    """Check a recipe, date it (`research_rl.attempt`) and put the text of prompts in the place of their files: workers on other nodes
    have neither this directory nor, perhaps, these files. verl runs without a `research_rl:` section are none of our business.

    Raises:
        ConfigError: a setting cannot work.
        DataError: a question cannot be trained on (see `check_data`).
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
    if until.metric and not settings.trajectory_dir:
        raise ConfigError(f"research_rl.until.metric={until.metric} is read from trajectories: set research_rl.trajectory_dir")
    if until.metric and not settings.trajectory_share:
        raise ConfigError(
            f"research_rl.until.metric={until.metric} is read from trajectories: research_rl.trajectory_share must be more than 0"
        )
    if (memory := settings.memory()).mu and memory.rewriter.startswith("http"):
        _check_service(memory.rewriter, "/models", "rewriter (research_rl.memorisation.rewriter)")
    for url in settings.retrieval_urls():
        _check_service(url)
    fix_index(config, settings)
    check_health(config, Health.from_mapping(settings.health or {}))
    check_training(config, settings)
    questions = check_data(config, settings)
    tell_coverage(config, settings)
    measure_once(config, questions)
    finish_last(config, settings)
    with open_dict(config):
        config.research_rl.attempt = time.time()
        config.research_rl.method_options = with_prompt_texts(settings.method, settings.method_options or {})
        if "research_rl" in config.data:  # for the data set; with its references resolved it is a copy
            config.data.research_rl = config.research_rl
        carry_environment(config)


def carry_environment(config: Any) -> None:
    """Let Ray give the workers what the loggers read from the environment: on a cluster that was started before, they have its, not ours.

    Secrets are not among them: Ray shows a job's environment to everybody who sees its dashboard.
    """
    found = {name: os.environ[name] for name in CARRIED if name in os.environ}
    given = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", {**found, **given}, force_add=True)


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
