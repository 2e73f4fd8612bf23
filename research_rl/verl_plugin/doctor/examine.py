"""All checks, in the order of the report. Reinforcement learning makes those of a recipe before it starts, and looks for the hooks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from research_rl.errors import ConfigError
from research_rl.verl_plugin.doctor import (
    coverage,
    data,
    environment,
    judge,
    lengths,
    machine,
    section,
    service,
    speed,
    tokenizer,
    tools,
    training,
)
from research_rl.verl_plugin.doctor.finding import Check, Finding, check
from research_rl.verl_plugin.doctor.setup import Setup

ENVIRONMENT = (environment.versions, environment.verl_plugin, environment.hooks, environment.vllm_plugin)
RECIPE = (
    *(section.section, section.sampling, section.until, section.reward),
    *(training.trainer, training.estimator, training.policy_loss, training.dynamic_sampling),
    *(training.health, training.batches),
    *(tokenizer.model_files, tokenizer.prompt, tokenizer.tags, lengths.lengths, lengths.bucket, lengths.budgets),
    *(service.service, tools.mcp_server, judge.judge, data.data, coverage.coverage, machine.disk, machine.memory, speed.speed),
)


def examine(setup: Setup, checks: Sequence[Check] = RECIPE) -> list[Finding]:
    """Make all checks of a set-up, and return all findings."""
    return [finding for each in checks for finding in each.findings(setup)]


def environment_findings(with_service: bool) -> list[Finding]:
    """Return the findings on the environment; `with_service`: also on the service, if RETRIEVAL_URL names one."""
    asked = with_service and os.environ.get("RETRIEVAL_URL")
    checks = [*ENVIRONMENT, *([_named_service] if asked else [])]
    return [finding for each in checks for finding in each.findings(Setup(None))]


@check("service", "the service of RETRIEVAL_URL answers")
def _named_service(_: Setup) -> Iterable[Finding]:
    service.ask_health(os.environ["RETRIEVAL_URL"])
    return ()


def refuse(findings: Sequence[Finding]) -> None:
    """Raise if there are errors among the findings: their exception, or ConfigError for several kinds, with all of them in the message."""
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    kinds = {finding.kind for finding in errors}
    kind = kinds.pop() if len(kinds) == 1 else ConfigError
    raise kind(str(errors[0]) if len(errors) == 1 else "\n".join([f"{len(errors)} errors:", *(f"- {each}" for each in errors)]))
