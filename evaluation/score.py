"""``python -m evaluation score``: answer metrics for anybody's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.jsonl import field, golden_field, read_rows, text_field, trajectory_field
from evaluation.statistics import estimate
from research_rl.errors import ConfigError, DataError
from research_rl.methods.base import Method
from research_rl.metrics import METRICS, NORMALIZERS

RIGHT, WRONG = ("true", "yes", "correct", "1", "1.0"), ("false", "no", "incorrect", "0", "0.0")  # a verdict's first word


def score_file(
    source: Path,
    pred_field: str,
    gold_field: str,
    metrics: Sequence[str],
    normalizer: str,
    *,
    judge_field: str | None = None,
    method: Method | None = None,
    response_field: str | None = None,
) -> dict[str, Any]:
    """Return ``{"n", "without_prediction", "normalizer", "metrics": {name: {"mean", "low", "high"}}}``,
    means over rows with 95 % intervals.

    A prediction that is null scores 0 under every answer metric, and is counted.

    `judge_field` holds a judge's recorded verdicts (metric `judge`); with `method` and `response_field`, the searches in the
    recorded responses are counted, as that method reads them (metric `searches`).

    Raises:
        ConfigError: a metric or normaliser is unknown.
        DataError: a row lacks a field: a metric that cannot be computed ends the run.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f"unknown metric {', '.join(unknown)}; choose of: {', '.join(METRICS)}")
    if normalizer not in NORMALIZERS:
        raise ConfigError(f"unknown normalizer {normalizer!r}; choose one of: {', '.join(NORMALIZERS)}")
    if (method is None) != (response_field is None):
        raise ConfigError("to count searches, give both --method and --response-field")
    values: dict[str, list[float]] = {name: [] for name in metrics}
    count = missing = 0
    for number, row in enumerate(read_rows(source), 1):
        count += 1
        silent = field(row, pred_field, source, number) is None
        missing += silent
        prediction = "" if silent else text_field(row, pred_field, source, number)
        golden = golden_field(row, gold_field, source, number)
        for name in metrics:
            values[name].append(0.0 if silent else METRICS[name](prediction, golden, NORMALIZERS[normalizer]))
        if judge_field:
            values.setdefault("judge", []).append(
                _verdict(field(row, judge_field, source, number), judge_field, source, number)
            )
        if method and response_field:
            searches = trajectory_field(row, response_field, source, number, method).searches
            values.setdefault("searches", []).append(float(len(searches)))
    return {
        "n": count,
        "without_prediction": missing,
        "normalizer": normalizer,
        "metrics": {
            name: {key: round(value, 4) for key, value in estimate(column)._asdict().items()} for name, column in values.items()
        },
    }


def _verdict(value: Any, name: str, source: Path, number: int) -> float:
    word, *others = str(value).lower().split() or [""]
    word = word.strip(".,:;!*()[]\"'`")
    if word not in RIGHT + WRONG or (others and word[0].isdigit()):  # "1 out of 5"
        raise DataError(f"{source}, row {number}: {name} must be a verdict such as true or false, got {value!r:.80}")
    return float(word in RIGHT)


def table(result: dict[str, Any]) -> str:
    """Return the result as text: shares in percent, counts as they are."""
    silent = f", {result['without_prediction']} without a prediction" if result["without_prediction"] else ""
    lines = [f"{result['n']} rows{silent}, normalizer {result['normalizer']}", f"{'metric':<20} {'mean':>7}   95 % interval"]
    for name, figures in result["metrics"].items():
        scale, digits, unit = (1, 2, "") if name == "searches" else (100, 1, " %")
        mean, low, high = (f"{figures[key] * scale:.{digits}f}" for key in ("mean", "low", "high"))
        lines.append(f"{name:<20} {mean:>7}{unit:<2} {low} to {high}")
    return "\n".join(lines)
