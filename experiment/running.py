"""Runs an experiment: steps that are done once, their child processes, and the services that they search."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from quickstart.progress import Phases
from research_rl.errors import ConfigError
from research_rl.training.metric_files import logged
from research_rl.training.processes import start_service, wait_until_healthy

SEARCHERS = {
    "no_evidence": "auto",
    "random": "random",
    "empty": "nothing",
}  # retrievers of the controls that have a service of their own


@dataclass(frozen=True)
class Step:
    """A part of an experiment. It is done if `output` exists, which it writes last, and whole or not at all."""

    name: str
    told: str
    output: Path
    run: Callable[[], None]


def run_steps(steps: Sequence[Step], phases: Phases, console: Console, until: str | None = None) -> None:
    """Do the steps that are not done, up to `until`. The seconds of each are recorded, even if it fails.

    Raises:
        ConfigError: there is no step `until`, or one has not written its output.
    """
    names = [step.name for step in steps]
    if until is not None and until not in names:
        raise ConfigError(f"--until {until}: no such step; valid: {', '.join(names)}")
    for number, step in enumerate(steps, 1):
        console.rule(f"{number}/{len(steps)}  {step.told}")
        if step.output.exists():
            console.print(f"done before: {step.output}", highlight=False)
        else:
            started = time.monotonic()
            try:
                step.run()
            finally:
                phases.add(step.name, time.monotonic() - started)
            if not step.output.exists():
                raise ConfigError(f"the step {step.name} has left no {step.output}")
        if step.name == until:
            return


def last_metrics(directory: Path) -> str:
    """Return the progress of a supervised training, from the file that verl logs to."""
    rows = logged(directory)
    if not rows:
        return "starting verl"
    row = rows[-1]
    return f"step {row['step']}, loss {row['data'].get('train/loss', float('nan')):.3f}"


class Services:
    """The retrieval services of a run: a process each, started on demand."""

    def __init__(self, run_dir: Path, port: int, console: Console) -> None:
        self._run_dir, self._port, self._console = run_dir, port, console
        self._main: str | None = None

    def url(self) -> str:
        """Return the URL of the service over all passages, which stays until the end."""
        if self._main is None:
            self._main = self._start("index", self._port, "auto")[0]
        return self._main

    @contextmanager
    def control(self, name: str) -> Iterator[str]:
        """Start a control's service for the duration of the block, and give its URL; the main URL if it needs no service of its own."""
        if name not in SEARCHERS:
            yield self.url()
            return
        url, process = self._start("index_no_evidence" if name == "no_evidence" else "index", self._port + 1, SEARCHERS[name])
        try:
            yield url
        finally:
            process.terminate()
            process.wait(30)

    def _start(self, index: str, port: int, retriever: str) -> tuple[str, subprocess.Popen]:
        log = self._run_dir / "logs" / f"service_{index}_{retriever}.log"
        process = start_service(self._run_dir / index, port, log, "--retriever", retriever)
        url = f"http://127.0.0.1:{port}"
        with self._console.status(f"loading {index} ({retriever})"):
            wait_until_healthy(process, url, log)
        return url, process
