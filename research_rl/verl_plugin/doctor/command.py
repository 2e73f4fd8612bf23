"""``research-rl doctor [--recipe RECIPE.yaml] [--run-dir DIR] [--json] [overrides]``: check a set-up before it is run.

Without a recipe it checks the environment; with one also every stage, with the overrides of `research-rl train`. Exit code 0: no error
(there may be warnings); 1: an error; 2: the command line cannot be understood.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from research_rl.command_line import Parser
from research_rl.errors import ConfigError
from research_rl.training.recipe import run_directory
from research_rl.verl_plugin.doctor.finding import Finding
from research_rl.verl_plugin.doctor.report import as_json, as_text, coloured


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, make all checks and print what they find; return the exit code."""
    started = time.perf_counter()
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    if options.recipe is None and (options.overrides or options.run_dir):
        parser.error("overrides and --run-dir belong to a recipe: give --recipe, too")
    # libraries print messages; standard output is for the report
    with contextlib.redirect_stdout(sys.stderr), _without_collection(), _without_scikit_learn():
        findings = diagnose(options.recipe, options.run_dir, options.overrides)
    seconds = time.perf_counter() - started
    print(as_json(findings, seconds) if options.json else as_text(findings, seconds, coloured()))
    return int(any(finding.level == "error" for finding in findings))


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from going through a million new objects of libraries, a fifth of the time here."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _without_scikit_learn() -> Iterator[None]:
    """Keep transformers from importing scikit-learn and SciPy, for speculative decoding that nothing here does: 0.7 s."""
    try:
        utils: Any = importlib.import_module("transformers.utils")
    except ImportError:  # the checks say what is missing, or does not fit
        yield
        return
    before, utils.is_sklearn_available = utils.is_sklearn_available, lambda: False
    try:
        yield
    finally:
        utils.is_sklearn_available = before


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="research-rl doctor", description=__doc__, example="research-rl doctor --recipe recipes/r1_searcher/gpu.yaml"
    )
    parser.add_argument(
        "--recipe", type=Path, help="the recipe to check, with all its stages; without one, only the environment is checked"
    )
    parser.add_argument("--run-dir", type=Path, help="directory of the run, as for `research-rl train`")
    parser.add_argument("--json", action="store_true", help="print one JSON object with findings and seconds")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, and stages.NAME.until.KEY=VALUE")
    return parser


def diagnose(recipe: Path | None, run_dir: Path | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Return the findings on the environment and on a recipe."""
    if recipe is None:
        from research_rl.verl_plugin.doctor.examine import environment_findings

        return environment_findings(with_service=True)
    from research_rl.verl_plugin.doctor.compose import environment

    directory = (run_dir or run_directory(recipe)).resolve()
    try:
        with environment(recipe, directory):  # before verl is imported, which reads these variables
            return _of_recipe(recipe, directory, overrides)
    except ConfigError as mistake:
        return [Finding("error", "recipe", str(mistake))]


def _of_recipe(recipe: Path, directory: Path, overrides: Sequence[str]) -> list[Finding]:
    from omegaconf.errors import OmegaConfBaseException

    from research_rl.verl_plugin.doctor.compose import compositions, is_supervised
    from research_rl.verl_plugin.doctor.hub import Hub
    from research_rl.verl_plugin.doctor.setup import Setup

    measured: dict[str, Any] = {"hub": Hub()}
    setups: dict[str, Setup] = {}
    mistakes: list[Finding] = []
    try:
        for stage, config in compositions(recipe, directory, overrides):
            setups[stage] = Setup(config, quick=True, measured=measured)
            with contextlib.suppress(OmegaConfBaseException):  # a recipe without a model; the checks say so
                measured["hub"].ask_beforehand(setups[stage].model_path)  # it may be slow; the next imports take as long
    except ConfigError as mistake:
        mistakes = [Finding("error", "recipe", str(mistake))]

    from research_rl.verl_plugin.doctor import supervised
    from research_rl.verl_plugin.doctor.examine import RECIPE, environment_findings, examine

    checks = supervised.CHECKS if is_supervised(recipe) else RECIPE
    findings = environment_findings(with_service=False) + mistakes
    return findings + together({stage: examine(setup, checks) for stage, setup in setups.items()})


def together(by_stage: dict[str, list[Finding]]) -> list[Finding]:
    """Return the findings of all stages: once if all stages have it, else with the names of its stages."""
    found: dict[Finding, list[str]] = {}
    for stage, findings in by_stage.items():
        for finding in findings:
            found.setdefault(finding, []).append(stage)
    return [
        finding if len(stages) == len(by_stage) else replace(finding, name=f"{finding.name} (stage {', '.join(stages)})")
        for finding, stages in found.items()
    ]
