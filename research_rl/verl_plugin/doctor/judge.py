"""Checks the judge of a run: it answers, and it judges two well-known answers correctly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from research_rl.judge_client import try_out
from research_rl.verl_plugin.doctor.finding import Finding, check, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup

_WAIT_S = {False: 60.0, True: 4.0}  # most seconds for a verdict; True: in the command, which must be quick


@check("judge", "none (research_rl.judge.url is null)", "settings")
def judge(setup: Setup) -> Iterator[Finding]:
    """Ask for a verdict on a right and on a wrong answer, and report the requests of a step."""
    settings = setup.settings
    assert settings is not None
    if not (settings.judge or {}).get("url"):
        return
    judged = settings.judging()
    if judged is None:
        yield warning(
            f"research_rl.judge is not asked: the reward of {settings.load().name} with these options does not depend on the answer",
            "",
            "Leave research_rl.judge.url out where that is meant (of a recipe with stages: in that stage)",
        )
        return
    tried = setup.measured.setdefault("judges", [])  # for all stages: (settings, seconds)
    seconds = next((seconds for other, seconds in tried if other == judged), None)
    if seconds is None:
        seconds = asyncio.run(try_out(judged, _WAIT_S[setup.quick]))
        tried.append((judged, seconds))
    rollouts = setup.config.data.train_batch_size * setup.config.actor_rollout_ref.rollout.n
    yield ok(
        f"{judged.model} at {judged.url} calls a right answer right and a wrong one wrong, {seconds / 2:.2f} s each; at most "
        f"{rollouts:,} verdicts a step, {judged.concurrency} at once for each rollout worker"
    )
