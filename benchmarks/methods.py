"""Methods side by side on the fictional world, with one budget of rollouts: ``python benchmarks/methods.py --out runs/methods``.

At most 40 steps of 16 questions x 8 rollouts each (20 in `group_reward`). One training after the other (each takes both cores), seed by
seed, so that every method has its first seed soon; run again, it goes on where it was. Writes `table.md` and `table.json` after every run.

`--experiment first_stage` and `group_reward` start from models with a fault that the shipped one does not have, made first (2 and 8
minutes): one hardly ever searches, the other makes most searches twice.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
METRICS = ("em", "f1", "searches", "retrieval_rate", "well_formed")
Run = tuple[str, tuple[str, ...]]  # recipe, overrides
_PP = "r1_searcher_pp/cpu.yaml"
_NO_GROUP, _NO_MEMORY = "research_rl.method_options.group=false", "research_rl.memorisation.mu=0.0"
_STAGES: dict[str, Run] = {
    "R1-Searcher, two stages": ("r1_searcher/cpu.yaml", ()),
    "R1-Searcher, stage 2 only": ("r1_searcher/cpu_stage2_only.yaml", ()),
}
_GROUP: dict[str, Run] = {
    "R1-Searcher++ without memorisation": (_PP, (_NO_MEMORY,)),
    "R1-Searcher++ without either": (_PP, (_NO_GROUP, _NO_MEMORY)),
}


@dataclass(frozen=True)
class Experiment:
    """Runs to compare, the habits of the model that they start from (None: the one that is shipped), and what they all override."""

    runs: dict[str, Run]
    habits: str | None = None
    overrides: tuple[str, ...] = ()


EXPERIMENTS = {
    "methods": Experiment(
        {
            "ReSearch, GRPO": ("research/cpu.yaml", ()),
            **_STAGES,
            "R1-Searcher++": (_PP, ()),
            "R1-Searcher++ without group reward": (_PP, (_NO_GROUP,)),
            **_GROUP,
            "Search-R1, GRPO": ("search_r1/cpu.yaml", ()),
        }
    ),
    "first_stage": Experiment(_STAGES, "lazy"),  # does stage 1 teach a model to search that hardly ever does?
    # does the group reward spare searches that are made twice?
    "group_reward": Experiment(_GROUP, "wasteful", ("trainer.total_training_steps=20",)),
}


def directory(out: Path, name: str, seed: int) -> Path:
    """Return the run's directory."""
    return out / f"{''.join(c if c.isalnum() else '_' for c in name.lower())}-seed{seed}"


def start_model(out: Path, habits: str) -> Path:
    """Make the starting model with these habits, unless it is there; return its directory."""
    model = out / f"start_model_{habits}"
    if not (model / "made.json").is_file():
        weights = ROOT / "quickstart" / "start_model" / "weights_all_methods"
        command = [
            *(sys.executable, "-m", "quickstart.start_model.make", "--out", str(model), "--init", str(weights)),
            *("--habits", habits, "--methods", "research,r1_searcher,r1_searcher_pp,search_r1"),
            *("--drill-epochs", "0", "--demo-epochs", "4"),
        ]
        # numba's threads beside torch's in one process cost more than they bring
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "NUMBA_NUM_THREADS": "1"})
    return model


def train(directory: Path, run: Run, seed: int, port: int, questions: int) -> int:
    """Train one method with one seed, or go on with it; return the exit code."""
    recipe, overrides = run
    command = [
        *(sys.executable, "-m", "quickstart", "--recipe", str(ROOT / "recipes" / recipe), "--seed", str(seed)),
        *("--port", str(port), "--run-dir", str(directory), "--test-questions", str(questions), *overrides),
    ]
    print(f"== {directory.name}", flush=True)
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def table(out: Path, names: Iterable[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return what is there as markdown and as rows: means over the finished seeds, and their number."""
    rows = []
    for name in names:
        seeds = sorted(out.glob(f"{directory(out, name, 0).name.removesuffix('0')}*/summary.json"))
        summaries = [json.loads(path.read_text()) for path in seeds]
        if not summaries:
            continue
        row: dict[str, Any] = {"method": name, "seeds": len(summaries)}
        for when in ("before", "after"):
            for metric in METRICS:
                values = [summary["test"][when][metric] for summary in summaries]
                row[f"{metric}_{when}"] = round(statistics.mean(values), 4)
                row[f"{metric}_{when}_by_seed"] = values
        row["control_em_after"] = round(statistics.mean(summary["control"]["after"]["em"] for summary in summaries), 4)
        row["rollouts"] = [sum(step["n"] for step in summary["steps"]) for summary in summaries]
        rows.append(row)
    columns = (
        *("method", "seeds", "rollouts", "EM before", "EM after (by seed)", "F1 after", "searches before", "searches after"),
        *("retrieval rate before", "retrieval rate after", "well-formed after", "EM without evidence"),
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        by_seed = ", ".join(f"{value:.3f}" for value in row["em_after_by_seed"])
        lines.append(
            f"| {row['method']} | {row['seeds']} | {', '.join(map(str, sorted(set(row['rollouts']))))} | {row['em_before']:.3f} "
            f"| **{row['em_after']:.3f}** ({by_seed}) | {row['f1_after']:.3f} | {row['searches_before']:.2f} | {row['searches_after']:.2f} "
            f"| {row['retrieval_rate_before']:.2f} | {row['retrieval_rate_after']:.2f} | {row['well_formed_after']:.2f} "
            f"| {row['control_em_after']:.3f} |"
        )
    return "\n".join(lines) + "\n", rows


def main() -> int:
    """Run what is left; return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8775)
    parser.add_argument("--test-questions", type=int, default=200)
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="methods")
    parser.add_argument("--only", nargs="*", help="names of runs")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    if unknown := sorted(set(options.only or ()) - set(experiment.runs)):
        parser.error(f"--only {unknown}: no such run; valid: {', '.join(experiment.runs)}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    model = (f"actor_rollout_ref.model.path={start_model(out, experiment.habits)}",) if experiment.habits else ()
    failed = 0
    for seed in range(1, options.seeds + 1):
        for name in options.only or experiment.runs:
            recipe, overrides = experiment.runs[name]
            run = (recipe, (*overrides, *experiment.overrides, *model))
            failed |= train(directory(out, name, seed), run, seed, options.port, options.test_questions) != 0
            text, rows = table(out, experiment.runs)
            (out / "table.md").write_text(text)
            (out / "table.json").write_text(json.dumps(rows, indent=1))
    print(table(out, experiment.runs)[0])
    return failed


if __name__ == "__main__":
    sys.exit(main())
