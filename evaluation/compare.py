"""``python -m evaluation report RUNS…``: show runs side by side in one HTML page and one markdown file.

A run is an output file of `run` or `baseline`. All must have the same questions, because every difference from the first run is tested
question by question.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from research_rl.errors import ConfigError, DataError
from research_rl.files import write_text
from research_rl.inference.sampling import read_log
from research_rl.web.page import render, subplots, svg

if TYPE_CHECKING:
    from evaluation.statistics import Difference, Estimate

FOLDER = Path(__file__).parent
COST = ("searches", "sampled_tokens", "seconds")


@dataclass(frozen=True)
class Run:
    """One run: its name and, by question id, the records of its rollouts."""

    name: str
    records: dict[str, list[dict[str, Any]]]

    def values(self, metric: str) -> list[float]:
        """Return a metric per question (the mean of its rollouts), in the order of ids.

        Raises:
            DataError: a record lacks it.
        """
        return [mean(_value(one, metric, self.name) for one in self.records[name]) for name in sorted(self.records)]


def _value(record: dict[str, Any], metric: str, run: str) -> float:
    if metric == "seconds":
        return record["generate_s"] + record["search_s"]
    if metric == "sampled_tokens":
        return float(record["sampled_tokens"])
    if metric == "judge" and "judge" in record:
        return float(record["judge"])
    if metric not in record["metrics"]:
        raise DataError(f"{run}: question {record['id']} has no metric {metric!r}; it has: {', '.join(record['metrics'])}")
    return record["metrics"][metric]


def add_report(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="show runs side by side: table, plots, examples",
        example="python -m evaluation report before=before.jsonl after=after.jsonl --out report.html",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN.jsonl", help="output of run or baseline; the others are compared with the first"
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the page; the markdown is written beside it")
    parser.add_argument("--metric", default="em", help="metric of plots, types and examples (default em)")
    parser.add_argument(
        "--metrics", default="em,f1,cover_em_substring", help="columns of the table, besides searches, tokens and seconds"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=5,
        help="number of gained, and of lost, questions to show for the last run against the first",
    )
    parser.add_argument(
        "--protocol", default="", help="corpus, retriever and top-k of these runs, shown beside the published figures"
    )
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> dict[str, Any]:
    """Write the page and the markdown, and return the table.

    Raises:
        DataError: a run is missing or lacks a metric, or two runs asked different questions.
        ConfigError: two runs have one name.
    """
    from evaluation.statistics import estimate, paired  # with SciPy

    runs = [load_run(text) for text in options.runs]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError(f"two runs are called the same ({', '.join(run.name for run in runs)}): name them, NAME=RUN.jsonl")
    for run in runs[1:]:
        if run.records.keys() != runs[0].records.keys():
            both = len(run.records.keys() & runs[0].records.keys())
            raise DataError(
                f"{run.name} and {runs[0].name} asked different questions: {len(run.records)} and {len(runs[0].records)}, {both} in both"
            )
    metrics = [name.strip() for name in options.metrics.split(",")]
    columns = list(dict.fromkeys([*metrics, *COST]))
    table = [{"name": run.name, **{name: estimate(run.values(name)) for name in columns}} for run in runs]
    tests = {run.name: paired(runs[0].values(options.metric), run.values(options.metric)) for run in runs[1:]}
    page = {
        "runs": runs,
        "columns": columns,
        "table": table,
        "tests": tests,
        "metric": options.metric,
        "n": len(runs[0].records),
        "groups": {kind: by_group(runs, kind, options.metric) for kind in ("type", "hops", "level")},
        "plots": [pareto(table, options.metric, cost) for cost in ("searches", "seconds")],
        "gained": changed(runs[0], runs[-1], options.metric, options.examples, gained=True),
        "lost": changed(runs[0], runs[-1], options.metric, options.examples, gained=False),
        "published": published(runs[0]),
        "protocol": options.protocol,
    }
    write_text(options.out, render("compare.html.j2", **page, show=show))
    write_text(options.out.with_suffix(".md"), markdown(page))
    return {"n": page["n"], **{row["name"]: {name: round(row[name].mean, 4) for name in columns} for row in table}}


def load_run(text: str) -> Run:
    """Read a run; its name is the part before "=", or that of the file.

    Raises:
        DataError: there is no such file, or it has no record.
    """
    name, equals, source = text.partition("=")
    path = Path(source if equals and not Path(text).exists() else text)
    logged = read_log(path)
    if not logged:
        raise DataError(f"no run at {path}")
    records = {identifier: [found for _, found in sorted(outcomes.items())] for identifier, outcomes in logged.items()}
    return Run(name if path != Path(text) else path.stem, records)


def by_group(runs: list[Run], kind: str, metric: str) -> dict[str, dict[str, Any]]:
    """Return {group: {"n", run: mean}} of a field of the questions' metadata; empty if no question has it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for identifier, records in runs[0].records.items():
        groups[str(records[0]["metadata"].get(kind) or "")].append(identifier)
    if set(groups) <= {"", "0"}:
        return {}
    return {
        group: {
            "n": len(ids),
            **{run.name: mean(mean(_value(one, metric, run.name) for one in run.records[i]) for i in ids) for run in runs},
        }
        for group, ids in sorted(groups.items())
    }


def changed(first: Run, last: Run, metric: str, count: int, gained: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return questions that the last run gets right and the first does not (or the other way round), in the order of ids."""
    pairs = []
    for identifier in sorted(first.records):
        one, two = first.records[identifier][0], last.records[identifier][0]
        difference = _value(two, metric, last.name) - _value(one, metric, first.name)
        if (difference > 0.5) if gained else (difference < -0.5):
            pairs.append((one, two))
    return pairs[:count]


def published(run: Run) -> list[dict[str, Any]]:
    """Return the papers' figures for the data sets of a run."""
    import yaml

    sources = {str(records[0]["metadata"].get("data_source") or "") for records in run.records.values()}
    rows = yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8"))
    return [row for row in rows if row["dataset"] in sources]


def pareto(table: list[dict[str, Any]], metric: str, cost: str) -> str:
    """Return a plot of accuracy against cost as inline SVG; the line joins the runs that no other run beats in both."""
    from evaluation.statistics import Estimate

    percent = [Estimate(*(100 * value for value in row[metric])) for row in table]
    points = [(row[cost].mean, found.mean, found, row["name"]) for row, found in zip(table, percent, strict=True)]
    best = [
        point
        for point in points
        if not any(other[0] <= point[0] and other[1] >= point[1] and other[:2] != point[:2] for other in points)
    ]
    best.sort()
    label = {"searches": "searches per question", "seconds": "seconds per question, waiting for others included"}[cost]
    figure, (axis,) = subplots(1, 6, 4)
    axis.plot([point[0] for point in best], [point[1] for point in best], color="#9ca3af", linestyle="--", zorder=1)
    for number, (x, y, interval, name) in enumerate(sorted(points, key=lambda point: point[:2])):
        error = [[y - interval.low], [interval.high - y]]
        axis.errorbar(x, y, yerr=error, fmt="o", color="#2563eb", ecolor="#bfdbfe", capsize=3, zorder=2)
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(6, 5 if number % 2 else -12), fontsize=9)
    axis.set(xlabel=label, ylabel=f"{metric} (%)")
    axis.margins(x=0.2, y=0.12)
    axis.grid(alpha=0.3)
    return svg(figure)


def show(name: str, found: Estimate | Difference) -> str:
    """Return a mean with its interval: shares in percent, counts and seconds as they are."""
    scale, digits = (1, 2) if name in COST else (100, 1)
    return f"{found.mean * scale:.{digits}f} [{found.low * scale:.{digits}f}, {found.high * scale:.{digits}f}]"


def markdown(page: dict[str, Any]) -> str:
    """Return the table, the tests and the groups as markdown."""
    lines = [f"{page['n']} questions; means with 95 % intervals, answer metrics in %.", ""]
    lines += [f"| run | {' | '.join(page['columns'])} |", "|" + "---|" * (len(page["columns"]) + 1)]
    lines += [f"| {row['name']} | {' | '.join(show(name, row[name]) for name in page['columns'])} |" for row in page["table"]]
    if page["tests"]:
        lines += ["", f"{page['metric']} against {page['runs'][0].name}, question by question (permutation test):", ""]
        lines += [f"- {name}: {show(page['metric'], test)} points, p = {test.p:.4f}" for name, test in page["tests"].items()]
    for kind, groups in page["groups"].items():
        if groups:
            names = [run.name for run in page["runs"]]
            lines += ["", f"| {kind} | questions | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
            lines += [
                f"| {group} | {row['n']} | {' | '.join(f'{row[name] * 100:.1f}' for name in names)} |"
                for group, row in groups.items()
            ]
    if page["published"]:
        lines += ["", f"Published, under other conditions (ours: {page['protocol'] or 'not stated'}):", ""]
        lines += [
            "| data set | method | model | metric | % | questions | corpus | retriever | top-k | source |",
            "|" + "---|" * 10,
        ]
        keys = ("dataset", "method", "model", "metric", "value", "questions", "corpus", "retriever", "top_k", "source")
        lines += [f"| {' | '.join(str(row[key]) for key in keys)} |" for row in page["published"]]
    return "\n".join(lines) + "\n"
