"""Finds what the viewer shows of a directory (trajectories of its stages, evaluations, metrics and alarms) or of a file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from research_rl.errors import ConfigError
from research_rl.trajectory_files import FORMS, parts
from research_rl.web.viewer_recordings import MESSAGES, RECORDINGS, is_dumped, no_recording

TRAJECTORIES, EVALUATION, RECORDING, METRICS, ALARMS = "trajectories", "evaluation", "recording", "metrics", "alarms"
_QUIET_S = 5.0  # seconds: a file of verl's that was written to more recently may not be whole
_DEPTHS = ("", "*/", "*/*/")  # a run, its stages, and the runs of an experiment with stages of their own


@dataclass(frozen=True)
class Source:
    """A file of one kind. `label` is the stage or evaluation that it belongs to, relative to the run; "" is the run itself."""

    kind: str
    label: str
    directory: Path
    name: str


def sources(run: Path) -> list[Source]:
    """Return every part below a run, oldest first within a stage.

    Raises:
        ConfigError: there is no such file or directory, or it holds no trajectories.
    """
    if not run.exists():
        raise ConfigError(
            f"{run}: no such file or directory; give the directory of a run, or a .jsonl of an evaluation or of another program"
        )
    found = _of_file(run) if run.is_file() else _of_directory(run.parent if run.name == TRAJECTORIES else run)
    if not any(source.kind in (TRAJECTORIES, EVALUATION, RECORDING) for source in found):
        why = f" This file: {no_recording(run)}." if run.is_file() else ""
        if fresh := [path.name for path in _by_step(run) if not _is_whole(path)]:
            why = f" {fresh[0]} is being written, and is read once it has not changed for {_QUIET_S:g} s: try again."
        raise ConfigError(
            f"{run}: no trajectories in it. A training writes them to RUN/[STAGE/]trajectories once its first rollouts are scored, "
            f"`research-rl evaluate run` to a .jsonl; give such a directory or file, or a .jsonl of {RECORDINGS}.{why}"
        )
    return found


def _of_file(path: Path) -> list[Source]:
    if _is_evaluation(path):
        return [_evaluation(path, path.parent)]
    if not no_recording(path):
        return [Source(RECORDING, "", path.parent, path.name)]
    names = {path.name.removesuffix(form) for form in FORMS if path.name.endswith(form)} & parts(path.parent)
    return [Source(TRAJECTORIES, "", path.parent, name) for name in names if path.parent.name == TRAJECTORIES]


def _of_directory(run: Path) -> list[Source]:
    found = []
    for depth in _DEPTHS:
        for directory in sorted(run.glob(f"{depth}{TRAJECTORIES}")):
            names = sorted(parts(directory))
            found += [Source(TRAJECTORIES, _label(directory.parent, run), directory, name) for name in names]
        for kind, pattern in ((METRICS, "metrics-*.jsonl"), (ALARMS, "health.jsonl")):
            files = sorted(run.glob(f"{depth}{pattern}"))
            found += [Source(kind, _label(path.parent, run), path.parent, path.stem) for path in files]
    rolled_out = [*run.glob("*.jsonl"), *run.glob("measured/*.jsonl")]
    found += [_evaluation(path, run) for path in sorted(rolled_out) if _is_evaluation(path)]
    return found + [Source(RECORDING, "", run, path.name) for path in _by_step(run) if _is_whole(path) and is_dumped(path)]


def _by_step(run: Path) -> list[Path]:
    """Return the files of a directory that are named by a step, as verl names them, in order."""
    return sorted((path for path in run.glob("*.jsonl") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def _is_whole(path: Path) -> bool:
    """Return whether a file is complete: one that changes after it was read forces the whole cache to be rebuilt."""
    # a time in the future is that of a file server whose clock is ahead: the file must not wait until then
    return not 0 <= time.time() - path.stat().st_mtime <= _QUIET_S


def _evaluation(path: Path, run: Path) -> Source:
    return Source(EVALUATION, _label(path.with_suffix(""), run), path.parent, path.stem)


def _label(path: Path, run: Path) -> str:
    return "" if path == run else path.relative_to(run).as_posix()


def _is_evaluation(path: Path) -> bool:
    """Return whether the first line is a rollout of an evaluation (a question, its answer and its metrics), and no conversation."""
    if path.suffix != ".jsonl" or path.name.startswith("."):
        return False
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(2**24))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"question", "metrics", "answer"} <= set(first) and MESSAGES not in first
