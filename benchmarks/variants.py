"""Runs of the quickstart that change something, one after the other: what benchmarks/collapse.py and benchmarks/options.py share.

Each is a run of its own in OUT/NAME; what is done is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import start_model
from research_rl.training.trajectory_log import read
from research_rl.web.page import svg

TWO = "actor_rollout_ref.actor.ppo_mini_batch_size=8"  # updates per batch: at the first, LLDS, GSPO and the clip range have no effect


@dataclass(frozen=True)
class Variant:
    """What a run of the quickstart changes: overrides, seed, and the habits of the model it starts from (None: the one that is shipped)."""

    overrides: tuple[str, ...] = ()
    seed: int = 1
    habits: str | None = None


def arguments(told: str | None, names: Collection[str], steps: int, port: int) -> argparse.Namespace:
    """Read the command line: `out`, `steps`, `port`, and `only`, the names of the variants to run."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--only", nargs="*", default=list(names), choices=list(names), metavar="NAME", help=", ".join(names))
    return parser.parse_args()


def directory(name: str, out: Path) -> Path:
    """Return a variant's run directory."""
    return out / name.replace(" ", "_").replace(",", "")


def run(variant: Variant, run_dir: Path, steps: int, port: int, questions: int = 40) -> None:
    """Run one variant, unless it has ended."""
    if (run_dir / "ended.json").is_file():
        return
    command = [
        sys.executable, "-m", "quickstart", "--run-dir", str(run_dir), "--seed", str(variant.seed), "--steps", str(steps),
        "--port", str(port), "--test-questions", str(questions), *variant.overrides,
    ]  # fmt: skip  # options beside their values
    if variant.habits:
        command.append(f"actor_rollout_ref.model.path={start_model(run_dir.parent, variant.habits)}")
    code = subprocess.run(command, check=False).returncode
    if not run_dir.is_dir():
        raise SystemExit(f"{run_dir.name} could not start; what is done is kept")
    (run_dir / "ended.json").write_text(json.dumps({"exit_code": code}))


def curves(run_dir: Path) -> dict[str, list[float]]:
    """Return the mean score and EM of a run's training rollouts, by step."""
    rows: dict[int, list[dict[str, float]]] = defaultdict(list)
    for record in read(run_dir / "trajectories"):
        if not record["validate"]:
            rows[record["step"]].append(record["metrics"])
    return {
        metric: [sum(row[metric] for row in rows[step]) / len(rows[step]) for step in sorted(rows)]
        for metric in ("score", "em")
    }


def write_svg(figure: Any, title: str, path: Path) -> None:
    """Write a figure with a title that is not drawn, but read aloud."""
    path.write_text(svg(figure).replace(">", f"><title>{title}</title>", 1), encoding="utf-8")
