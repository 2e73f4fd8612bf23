"""Evaluate a served model: the same rollout as in training, over an OpenAI-compatible server and a retrieval service."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

from evaluation.statistics import estimate
from research_rl.errors import ConfigError
from research_rl.files import write_text
from research_rl.inference.engine import vllm_server
from research_rl.inference.sampling import REDUCED, read_log
from research_rl.inference.served import open_served, sample_served
from research_rl.methods.base import Method
from research_rl.questions import read_questions
from research_rl.scoring import trajectory_metrics
from research_rl.types import Budget, Trajectory

Record = dict[str, Any]


def record(method: Method, trajectory: Trajectory, row: Mapping[str, Any]) -> Record:
    """Return the record of a rollout: its turns, answer and metrics, and its cost in tokens and seconds."""
    return {
        "golden_answers": row["golden_answers"],
        "metadata": row.get("metadata") or {},
        **trajectory.to_json(),
        "answer": method.answer(trajectory) or "",
        "sampled_tokens": sum(trajectory.response_mask),
        "prompt_tokens": len(trajectory.prompt_ids),
        "generate_s": round(trajectory.seconds_generating, 3),
        "search_s": round(trajectory.seconds_searching, 3),
        "metrics": trajectory_metrics(method, trajectory, row["golden_answers"]),
    }


def run(options: argparse.Namespace) -> Record:
    """Roll out the questions that are not in the log yet, and return the summary, which is written beside the rollouts as well.

    Raises:
        ConfigError: several rollouts of a question at temperature 0 would be the same.
        RetrievalError, GenerationError: a server is unavailable. Run again, the command continues.
    """
    if options.samples > 1 and not options.temperature:
        raise ConfigError(f"{options.samples} samples at temperature 0 are all the same: give --temperature, for example 1.0")
    questions = list(read_questions(options.questions))  # a mistake in the file is told before an engine starts
    if options.serve:
        engine = vllm_server(
            options.tokenizer, options.model, shlex.split(options.serve_options), options.out.with_suffix(".vllm.log")
        )
        with engine as options.model_url:
            return _run(options, questions)
    return _run(options, questions)


def _run(options: argparse.Namespace, questions: list[dict[str, Any]]) -> Record:
    served = open_served(options)
    may_change = {"samples", "serve", "serve_options"}
    this_run = sample_served(
        options, served, questions, options.samples, options.out, partial(record, served.method), may_change
    )
    logged = read_log(options.out)
    records = [[logged[row["id"]][number] for number in range(1, options.samples + 1)] for row in questions]
    reduced = reduced_budgets(records, served.budget)
    figures = {"model": options.model, "method": served.method.name, **summarize(records), **reduced, "last_run": this_run}
    write_text(options.out.with_name(f"{options.out.stem}.summary.json"), json.dumps(figures, indent=1) + "\n")
    return figures


def summarize(questions: Sequence[Sequence[Record]]) -> Record:
    """Return means over questions (each the mean of its k rollouts, "avg@k") with 95 % intervals, and the cost per question.

    With several rollouts of a question, `pass@k`: the share of questions of which at least one rollout is right by exact match.
    """
    rollouts = [one for records in questions for one in records]
    names = list(rollouts[0]["metrics"])
    estimates = {name: estimate([mean(one["metrics"][name] for one in records) for records in questions]) for name in names}
    figures: Record = {"n": len(questions), "samples": len(questions[0])}
    figures |= {name: round(found.mean, 4) for name, found in estimates.items()}
    figures["intervals"] = {name: [round(found.low, 4), round(found.high, 4)] for name, found in estimates.items()}
    if len(questions[0]) > 1:
        passed = [float(any(one["metrics"]["em"] for one in records)) for records in questions]
        figures[f"pass@{len(questions[0])}"] = round(mean(passed), 4)
    by_verdict = {
        name: [one["metrics"]["searches"] for one in rollouts if bool(one["metrics"]["em"]) is right]
        for name, right in (("searches_when_right", True), ("searches_when_wrong", False))
    }
    seconds = sorted(one["generate_s"] + one["search_s"] for one in rollouts)
    figures["cost"] = {
        **{name: round(mean(values), 3) if values else None for name, values in by_verdict.items()},
        "sampled_tokens": round(mean(one["sampled_tokens"] for one in rollouts), 1),
        "seconds_median": round(median(seconds), 3),
        "seconds_p95": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
    }
    types: dict[str, list[float]] = defaultdict(list)
    for records in questions:
        types[str(records[0]["metadata"].get("type") or "")].append(mean(one["metrics"]["em"] for one in records))
    if set(types) - {""}:
        figures["em_by_type"] = {
            name: {"em": round(mean(values), 4), "n": len(values)} for name, values in sorted(types.items())
        }
    return figures


def reduced_budgets(questions: Sequence[Sequence[Record]], budget: Budget) -> Record:
    """Return how many rollouts got a smaller budget because of the server's context, and the smallest budget; empty if none did."""
    reduced = [one[REDUCED] for records in questions for one in records if REDUCED in one]
    figures = {
        "rollouts": len(reduced),
        "asked_response_tokens": budget.response_tokens,
        "least_response_tokens": min(reduced, default=0),
    }
    return {"reduced_budgets": figures} if reduced else {}
