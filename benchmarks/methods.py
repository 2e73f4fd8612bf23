"""All methods side by side on the fictional world, with one budget of rollouts: ``python benchmarks/methods.py --out runs/methods``.

At most 40 steps of 16 questions x 8 rollouts each. One training after the other (each takes both cores), seed by seed, so that every
method has its first seed soon; run again, it goes on where it was. Writes `table.md` and `table.json` after every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: (recipe, overrides)
    "ReSearch, GRPO": ("research/cpu.yaml", ()),
    "R1-Searcher, two stages": ("r1_searcher/cpu.yaml", ()),
    "R1-Searcher, stage 2 only": ("r1_searcher/cpu_stage2_only.yaml", ()),
    "R1-Searcher++": ("r1_searcher_pp/cpu.yaml", ()),
    "R1-Searcher++ without group reward": ("r1_searcher_pp/cpu.yaml", ("research_rl.method_options.group=false",)),
    "R1-Searcher++ without memorisation": ("r1_searcher_pp/cpu.yaml", ("research_rl.memorisation.mu=0.0",)),
    "R1-Searcher++ without either": (
        "r1_searcher_pp/cpu.yaml",
        ("research_rl.method_options.group=false", "research_rl.memorisation.mu=0.0"),
    ),
    "Search-R1, GRPO": ("search_r1/cpu.yaml", ()),
}


def directory(out: Path, name: str, seed: int) -> Path:
    """Return the run's directory."""
    return out / f"{''.join(c if c.isalnum() else '_' for c in name.lower())}-seed{seed}"


def run(out: Path, name: str, seed: int, port: int, questions: int) -> int:
    """Train one method with one seed, or go on with it; return the exit code."""
    recipe, overrides = RUNS[name]
    command = [
        *(
            sys.executable,
            "-m",
            "quickstart",
            "--recipe",
            str(ROOT / "recipes" / recipe),
            "--seed",
            str(seed),
            "--port",
            str(port),
        ),
        *("--run-dir", str(directory(out, name, seed)), "--test-questions", str(questions), *overrides),
    ]
    print(f"== {name}, seed {seed}", flush=True)
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def table(out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return what is there as markdown and as rows: means over the finished seeds, and their number."""
    rows = []
    for name in RUNS:
        seeds = sorted(out.glob(f"{directory(out, name, 0).name.removesuffix('0')}*/summary.json"))
        summaries = [json.loads(path.read_text()) for path in seeds]
        if not summaries:
            continue
        row: dict[str, Any] = {"method": name, "seeds": len(summaries)}
        for when in ("before", "after"):
            for metric in ("em", "f1", "searches", "well_formed"):
                values = [summary["test"][when][metric] for summary in summaries]
                row[f"{metric}_{when}"] = round(statistics.mean(values), 4)
                row[f"{metric}_{when}_by_seed"] = values
        row["control_em_after"] = round(statistics.mean(summary["control"]["after"]["em"] for summary in summaries), 4)
        row["rollouts"] = [sum(step["n"] for step in summary["steps"]) for summary in summaries]
        rows.append(row)
    columns = (
        *("method", "seeds", "rollouts", "EM before", "EM after (by seed)", "F1 after", "searches before", "searches after"),
        *("well-formed after", "EM without evidence"),
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        by_seed = ", ".join(f"{value:.3f}" for value in row["em_after_by_seed"])
        lines.append(
            f"| {row['method']} | {row['seeds']} | {', '.join(map(str, sorted(set(row['rollouts']))))} | {row['em_before']:.3f} "
            f"| **{row['em_after']:.3f}** ({by_seed}) | {row['f1_after']:.3f} | {row['searches_before']:.2f} | {row['searches_after']:.2f} "
            f"| {row['well_formed_after']:.2f} | {row['control_em_after']:.3f} |"
        )
    return "\n".join(lines) + "\n", rows


def main() -> int:
    """Run what is left; return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8775)
    parser.add_argument("--test-questions", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="names of methods")
    options = parser.parse_args()
    out = options.out.resolve()
    failed = 0
    for seed in range(1, options.seeds + 1):
        for name in options.only:
            failed |= run(out, name, seed, options.port, options.test_questions) != 0
            text, rows = table(out)
            out.mkdir(parents=True, exist_ok=True)
            (out / "table.md").write_text(text)
            (out / "table.json").write_text(json.dumps(rows, indent=1))
    print(table(out)[0])
    return failed


if __name__ == "__main__":
    sys.exit(main())
