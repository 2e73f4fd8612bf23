"""The start of a training: the doctor's checks, before Ray or any accelerator is used, and settings that are derived from others."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from omegaconf import OmegaConf, open_dict

from research_rl.cpu import CPU_ENVIRONMENT
from research_rl.forks import PYTHON
from research_rl.methods import with_prompt_texts
from research_rl.methods.templates import prompt_pieces
from research_rl.training.rollback import LR_FROM_CONFIG
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.doctor.environment import hooks
from research_rl.verl_plugin.doctor.examine import RECIPE, examine, refuse
from research_rl.verl_plugin.doctor.lengths import set_engine_length
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.training import set_sync_step
from research_rl.verl_plugin.manifest import finish_last
from research_rl.verl_plugin.resuming import measure_once
from research_rl.verl_plugin.same_index import fix_index

CARRIED = (
    *("TENSORBOARD_DIR", "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT", "WANDB_MODE", "WANDB_DIR", LR_FROM_CONFIG),
    *CPU_ENVIRONMENT,
)


def check_config(config: Any) -> None:
    """Check a recipe, print the findings, set `research_rl.attempt`, and replace prompt files by their text, because workers on other
    nodes do not run in this directory and may lack these files. verl runs without a `research_rl:` section are left as they are.

    Raises:
        ConfigError: a setting cannot work, or errors of several kinds were found; the message has all of them.
        DataError: a question cannot be trained on.
        RetrievalError: a retrieval service that the run needs does not answer.
        JudgeError: the judge does not answer.
    """
    if "research_rl" not in config:
        return
    logging.getLogger("httpx").setLevel(
        logging.WARNING
    )  # Hydra makes httpx log every request, about a hundred before the run starts
    # verl resolves ${oc.env:…} in a Ray worker, which lacks this process's environment if the cluster was started before
    OmegaConf.resolve(config)
    setup = Setup(config)
    findings = examine(setup, (hooks, *RECIPE))
    for finding in findings:
        if finding.level != "error":
            print(f"research_rl: {'warning: ' * (finding.level == 'warning')}{finding.name}: {finding}")
    refuse(findings)
    settings = settings_of(config)
    fix_index(config, settings)
    set_engine_length(setup)
    set_sync_step(config)
    measure_once(config, setup.measured.get("questions"))
    finish_last(config, settings)
    with open_dict(config):
        config.research_rl.attempt = time.time()
        config.research_rl.method_options = with_prompt_texts(settings.method, settings.method_options or {})
        if (judge := config.research_rl.get("judge")) and judge.get("prompt_file"):
            judge.prompt, judge.prompt_file = prompt_pieces(judge.prompt_file), None
        if "research_rl" in config.data:  # resolving has made this reference a copy
            config.data.research_rl = config.research_rl
        carry_environment(config)
        fork_workers(config)


def carry_environment(config: Any) -> None:
    """Pass the environment variables that loggers read to the workers through Ray: on a cluster that was started before, workers have
    the cluster's environment. Secrets are not passed, because Ray shows a job's environment to everybody who sees its dashboard.
    """
    found = {name: os.environ[name] for name in CARRIED if name in os.environ}
    given = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", {**found, **given}, force_add=True)


def fork_workers(config: Any) -> None:
    """Have Ray fork its workers from the process that this one was forked from, if it was (`research_rl.forks`).

    Not those of a cluster that runs already: they may be on other machines. Ray takes `num_cpus` only for a cluster that it starts.
    """
    ray = config.ray_kwargs.get("ray_init") or {}
    starts = ray.get("num_cpus") is not None and not (ray.get("address") or os.environ.get("RAY_ADDRESS"))
    if starts and (python := os.environ.get(PYTHON)):
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.py_executable", python, force_add=True)
