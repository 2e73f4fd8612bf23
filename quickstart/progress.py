"""What a running training is doing, read from its trajectories."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from evaluation.summary import TRAINING, by_step, mean_metrics, part_of
from research_rl.files import write_text
from research_rl.training.processes import tail
from research_rl.training.trajectory_log import TrajectoryReader


class Phases:
    """Wall-clock seconds by phase, kept across resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase and save."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        write_text(self._path, json.dumps(self.seconds, indent=1))


def follow(process: subprocess.Popen, run_dir: Path, console: Console) -> int:
    """Print one line per finished step and keep a clock running until the process ends; return its exit code."""
    started, shown = time.monotonic(), set()
    spinner = Spinner("dots", text="starting Ray, verl and vLLM (one to three minutes)")
    last_note, trajectories = 0.0, TrajectoryReader(run_dir / "trajectories")
    with Live(spinner, console=console, refresh_per_second=4, transient=True):
        while process.poll() is None:
            time.sleep(3.0)
            records = trajectories.records()
            newest = max(((record["step"], part_of(record)) for record in records), default=None)
            for part in ("test", "control", TRAINING):
                for step, rows in by_step(records, part).items():
                    if (step, part) not in shown and newest is not None and step < newest[0]:
                        shown.add((step, part))
                        console.print(line(part, step, rows))
            elapsed = time.monotonic() - started
            counts = (
                f"step {newest[0]}, {len(records)} trajectories"
                if newest
                else "starting Ray, verl and vLLM (one to three minutes)"
            )
            spinner.update(text=f"{int(elapsed) // 60}:{int(elapsed) % 60:02d}  {counts}")
            if not console.is_terminal and elapsed - last_note > 60:
                last_note = elapsed
                console.print(f"{int(elapsed)} s: {counts}")
    if process.returncode:
        console.print(tail(run_dir / "train.log", 5), markup=False, highlight=False)
    return process.returncode


def line(part: str, step: int, rows: list) -> str:
    """Return the figures of one step as one line."""
    means = mean_metrics(rows)
    name = {TRAINING: "train", "test": "held-out", "control": "control (no evidence)"}[part]
    return (
        f"step {step:3d}  {name:22s} reward {means['score']:.3f}  EM {means['em']:.3f}  "
        f"searches {means['searches']:.2f}  well-formed {means['well_formed']:.2f}  ({means['n']} rollouts)"
    )
