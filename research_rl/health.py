"""The health of a run: figures of each rollout that change before the reward does, and their summary over a step's rollouts.

All of them are computed from what the policy wrote and was shown, without a further forward pass of a model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from research_rl.methods.base import Method
from research_rl.metrics import holds_phrase, is_yes_no, normalize_answer
from research_rl.tools.mcp import McpTool
from research_rl.tools.open import opened_in
from research_rl.types import Action, Invalid, Search, StopReason, ToolCalls, Trajectory

NGRAM = 4  # words
FIGURES = (  # what a step may log under `health/`
    "search_rate", "searches", "nothing_shown", "repeated_query_rate", "unknown_id_rate", "repeated_open_rate",
    "evidence_rate", "supporting_rate", "correct_without_evidence",
    "well_formed_rate", "invalid_rate", "written_tokens", "observed_tokens", "masked_share", "repeated_text",
    "answer_words", "answer_excess", "several_answers", "tags_in_answer", "entropy_estimate", "preferred_logprob",
    "uninformative_groups", "search_seconds_p50", "search_seconds_p95", "lost_groups", "alarms",
)  # fmt: skip  # names only
# each has one figure per number of hops (or question type), per stop reason, per reason of an invalid turn
FAMILIES = ("searches/", "stop/", "invalid/")
_SEPARATORS = re.compile(r"\n|;|,? or | / |,? and/or ", re.IGNORECASE)


@dataclass(frozen=True)
class RolloutHealth:
    """The figures of one rollout under the names of FIGURES and FAMILIES; figures that do not apply to it are left out.

    `group` identifies its question in the batch, `score` is the reward that training uses. `search_seconds`: mean per search, None without
    a search. `logprob`: mean log-probability (nats) of its tokens when they were sampled, None if the engine does not return it.
    """

    group: str
    score: float
    figures: Mapping[str, float]
    search_seconds: float | None = None
    logprob: float | None = None


def rollout_health(
    method: Method,
    trajectory: Trajectory,
    golden_answers: Sequence[str],
    score: float,
    group: str = "",
    info: Mapping[str, Any] | None = None,
) -> RolloutHealth:
    """Return the figures of one rollout. `info`: the row's `extra_info`, of which `hops`, `type` and `supporting_ids` are read."""
    searches, sampled = trajectory.searches, sum(trajectory.response_mask)
    logprobs = [value for value, mask in zip(trajectory.logprobs, trajectory.response_mask, strict=False) if mask]
    return RolloutHealth(
        group,
        score,
        {
            **_searching(method, trajectory, searches, info or {}),
            **_opening(method, trajectory),
            **_evidence(method, trajectory, golden_answers),
            **_form(method, trajectory, sampled),
            **_answer(method, trajectory, golden_answers),
        },
        trajectory.seconds_searching / len(searches) if searches else None,
        fmean(logprobs) if logprobs else None,
    )


def _searching(method: Method, trajectory: Trajectory, searches: list[str], info: Mapping[str, Any]) -> dict[str, float]:
    figures = {"search_rate": float(bool(searches)), "searches": float(len(searches))}
    if kind := f"hops_{hops}" if (hops := info.get("hops")) else str(info.get("type") or ""):
        figures[f"searches/{kind}"] = float(len(searches))
    if searches:
        figures["repeated_query_rate"] = 1 - len({normalize_answer(query) for query in searches}) / len(searches)
    asked = [turn for turn in trajectory.turns if turn.observation and _asks_for_passages(method, turn.action)]
    if asked:
        figures["nothing_shown"] = sum(not turn.passages for turn in asked) / len(asked)
    supporting = info.get("supporting_ids")
    if supporting is not None and len(supporting):
        shown = {passage.id for turn in trajectory.turns for passage in turn.passages}
        figures["supporting_rate"] = len(shown & {str(one) for one in supporting}) / len(supporting)
    return figures


def _opening(method: Method, trajectory: Trajectory) -> dict[str, float]:
    opens = opened_in(trajectory, method.tools)
    if not opens:
        return {}
    return {"unknown_id_rate": fmean(not one.shown for one in opens), "repeated_open_rate": fmean(one.again for one in opens)}


def _asks_for_passages(method: Method, action: Action) -> bool:
    """Return whether a turn asked for passages. Other tools may rightly return none, and an MCP server returns texts."""
    names = {name for name in ("search", "open") if not isinstance(method.tools.get(name), McpTool)}
    return isinstance(action, Search) or (isinstance(action, ToolCalls) and all(call.name in names for call in action.calls))


def _evidence(method: Method, trajectory: Trajectory, golden_answers: Sequence[str]) -> dict[str, float]:
    """Return whether a golden answer was shown, and whether a correct answer was given without; nothing for yes/no questions."""
    if is_yes_no(golden_answers):
        return {}
    phrases = [normalize_answer(golden) for golden in golden_answers]
    shown = any(holds_phrase(normalize_answer(turn.observation), phrases) for turn in trajectory.turns if turn.observation)
    figures = {"evidence_rate": float(shown)} if trajectory.searches else {}
    if holds_phrase(normalize_answer(method.answer(trajectory) or ""), phrases):
        figures["correct_without_evidence"] = float(not shown)
    return figures


def _form(method: Method, trajectory: Trajectory, sampled: int) -> dict[str, float]:
    reasons = {turn.action.reason for turn in trajectory.turns if isinstance(turn.action, Invalid)}
    figures = {
        "well_formed_rate": float(method.well_formed(trajectory)),
        "invalid_rate": float(bool(reasons)),
        "repeated_text": repeated_share(trajectory.policy_text),
        **{f"stop/{reason}": float(reason is trajectory.stop_reason) for reason in StopReason},
        **{f"invalid/{_slug(reason)}": 1.0 for reason in reasons},
    }
    if total := len(trajectory.response_mask):
        figures |= {"written_tokens": sampled, "observed_tokens": total - sampled, "masked_share": 1 - sampled / total}
    return figures


def _answer(method: Method, trajectory: Trajectory, golden_answers: Sequence[str]) -> dict[str, float]:
    """Return the figures that reveal an answer written to please the metric instead of to answer."""
    if not (answer := (method.answer(trajectory) or "").strip()):
        return {}
    words, parts = len(answer.split()), len(_SEPARATORS.split(answer))
    return {
        "answer_words": words,
        "answer_excess": words / max((len(golden.split()) for golden in golden_answers), default=1),
        "several_answers": float(parts > max((len(_SEPARATORS.split(golden.strip())) for golden in golden_answers), default=1)),
        "tags_in_answer": float(any(tag in answer for tag in method.tags)),
    }


def repeated_share(text: str) -> float:
    """Return the share of a text's word 4-grams that repeat an earlier one; 0 for a text of fewer than four words."""
    words = text.split()
    ngrams = list(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _slug(reason: str) -> str:
    return "_".join(re.findall(r"\w+", reason.lower())) or "none"


def step_health(rollouts: Sequence[RolloutHealth]) -> dict[str, float]:
    """Return a step's figures as ``health/NAME``: means over the rollouts that have the figure, and figures of all rollouts together."""
    values = by_name(rollout.figures for rollout in rollouts)
    figures = {name: fmean(found) for name, found in values.items() if not name.startswith("invalid/")}
    figures |= {name: sum(found) / len(rollouts) for name, found in values.items() if name.startswith("invalid/")}
    figures |= _of_groups(rollouts)
    if logprobs := _known(rollout.logprob for rollout in rollouts):
        figures["entropy_estimate"] = -fmean(logprobs)
    if seconds := sorted(_known(rollout.search_seconds for rollout in rollouts)):
        figures |= {f"search_seconds_p{share}": seconds[(len(seconds) - 1) * share // 100] for share in (50, 95)}
    return {f"health/{name}": value for name, value in figures.items()}


def by_name(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the values of each name, in the order of the rows that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return values


def _of_groups(rollouts: Sequence[RolloutHealth]) -> dict[str, float]:
    """Return the share of questions whose rollouts all have the same score, and the mean log-probability of above-average rollouts."""
    groups: dict[str, list[RolloutHealth]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)
    several = [members for members in groups.values() if len(members) > 1]
    if not several:
        return {}
    figures = {"uninformative_groups": fmean(len({one.score for one in members}) == 1 for members in several)}
    means = [(members, fmean(one.score for one in members)) for members in several]
    if preferred := _known(one.logprob for members, mean in means for one in members if one.score > mean):
        figures["preferred_logprob"] = fmean(preferred)
    return figures


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
