"""``research-rl train RECIPE.yaml [--run-dir DIR] [hydra overrides]``: train a recipe from beginning to end, stage by stage.

Each stage is one job of verl's trainer, and so is a recipe without stages, or one for verl's supervised trainer. A stage starts from the
model of the stage before, which is also its KL reference, with a fresh optimiser. After an interruption, the same command continues in the
stage where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_rl.command_line import Parser
from research_rl.cpu import CPU_ENGINE
from research_rl.errors import ConfigError, MissingExtraError, missing_extra
from research_rl.files import changed_settings, write_text
from research_rl.training.export import export
from research_rl.training.processes import leaving_none
from research_rl.training.rollback import HALTED_CODE, after_rollbacks, go_on, halted, stopped
from research_rl.training.stages import ENDED, Stage, read_stages

try:
    import yaml
except ModuleNotFoundError as error:
    raise missing_extra("PyYAML", "train") from error

DONE = "done.json"
# engine and trainer take turns, so each may use all cores; Ray would limit a worker to one
CPU_ENVIRONMENT = CPU_ENGINE | {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "RAY_DEDUP_LOGS": "0",
    "HYDRA_FULL_ERROR": "1",
}


@dataclass(frozen=True)
class Job:
    """One run of verl's trainer: its command, additional environment variables, and the directory it writes to."""

    stage: str
    directory: Path
    command: list[str]
    environment: dict[str, str]


Launch = Callable[[Job], int]  # runs a job to its end; returns the exit code


def load_recipe(recipe: Path) -> Mapping[str, Any]:
    """Return the recipe without resolving interpolations: its file, merged over the recipes beside it that its `defaults` name.

    Raises:
        ConfigError: there is no such file, or it is no mapping.
    """
    if not recipe.is_file():
        known = ", ".join(str(path) for path in sorted(Path("recipes").glob("*/*.yaml")))
        raise ConfigError(f"no recipe {recipe}; there are: {known or 'none in ./recipes'}")
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe} is no recipe: expected a mapping with `defaults`")
    under: Mapping[str, Any] = {}
    defaults: list[Any] = []
    for part in content.get("defaults") or []:
        beside = recipe.with_name(f"{part}.yaml")
        if isinstance(part, str) and beside.is_file():
            under = _over(under, load_recipe(beside))
            defaults += under["defaults"]
        else:
            defaults.append(part)
    return {**_over(under, content), "defaults": defaults}


def _over(under: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return two sections merged as Hydra does it: recursively, and the second one wins."""
    both = {
        key: _over(under[key], value) if isinstance(value, Mapping) and isinstance(under.get(key), Mapping) else value
        for key, value in content.items()
    }
    return {**under, **both}


SUPERVISED = "sft_trainer_engine"  # verl's configuration of its SFT trainer, in a recipe's defaults
MODEL = "actor_rollout_ref.model.path"
# stages that shared one of these would mistake each other's checkpoints and trajectories for their own
_DIRECTORY = "--run-dir, in which every stage has its directory"
OF_STAGE = {  # key that a recipe with stages must not set: what to set instead
    "trainer.total_training_steps": "stages.NAME.until.steps=N", "research_rl.stage": "the name in the recipe's `stages`",
    "trainer.default_local_dir": _DIRECTORY, "research_rl.trajectory_dir": _DIRECTORY, "hydra.run.dir": _DIRECTORY,
}  # fmt: skip


def stages_of(recipe: Path, overrides: Sequence[str]) -> tuple[list[Stage], list[str]]:
    """Return the stages of a recipe (an empty list if it has none) and the overrides that do not concern them.

    ``stages.NAME.until.steps=5`` changes when a stage ends.

    Raises:
        ConfigError: an override names no stage or sets what every stage sets for itself, or a stage is wrong.
    """
    section = {name: dict(body) for name, body in (load_recipe(recipe).get("stages") or {}).items()}
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        parts = key.split(".")
        if section and (instead := OF_STAGE.get(override_key(override))):
            raise ConfigError(f"{override}: each stage sets this itself; use instead: {instead}")
        if parts[0] != "stages":
            others.append(override)
            continue
        if len(parts) != 4 or parts[1] not in section or parts[2] != "until":
            raise ConfigError(
                f"{override}: expected stages.NAME.until.KEY=VALUE with NAME one of: {', '.join(section) or 'none'}"
            )
        section[parts[1]]["until"] = {**(section[parts[1]].get("until") or {}), parts[3]: yaml.safe_load(value)}
    return read_stages(section), others


def jobs(recipe: Path, run_dir: Path, overrides: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs that remain to be done, in order; each is made when the one before has ended.

    A finished job is yielded again if it is now to train for longer.

    Raises:
        ConfigError: see `stages_of`; a finished stage has left no model (see `export`), or is to train for longer although the next stage
            has started.
    """
    stages, others = stages_of(recipe, overrides)
    content = load_recipe(recipe)
    cpu = is_on_cpu(content)
    experiment = (content.get("trainer") or {}).get("experiment_name", recipe.stem)
    only_measures = any(override_key(part) == "trainer.val_only" and yaml.safe_load(part.partition("=")[2]) for part in others)
    model, ended_early = None, False
    for number, stage in enumerate(stages or [None]):
        directory = run_dir / stage.name if stage else run_dir
        checkpoints = directory / "checkpoints"
        if not only_measures:
            go_on(directory)
        slower, environment_of_slower = after_rollbacks(directory)
        command = [
            *(sys.executable, "-m", *_trainer(content, others)),
            *("--config-dir", str(recipe.resolve().parent), "--config-name", recipe.stem),
            *(stage_overrides(stage, directory, number, model, experiment, ended_early) if stage else []),
            *(part for part in others if not (model and override_key(part) == MODEL)),  # the starting model is for the first stage
            *slower,
        ]  # fmt: skip
        environment = {
            **(CPU_ENVIRONMENT if cpu else {}), **environment_of_slower, "RUN_DIR": str(run_dir),
            "VERL_FILE_LOGGER_PATH": str(directory / f"metrics-{int(time.time())}.jsonl"),
            "TENSORBOARD_DIR": str(directory / "tensorboard"),
        }  # fmt: skip
        job = Job(stage.name if stage else "", directory, command, environment)
        end = _end(stage, content, others)
        done = _is_done(directory, end)
        if only_measures and (not done or number >= len(stages) - 1):
            directory.mkdir(parents=True, exist_ok=True)
            yield job
            return  # nothing was trained, so nothing is done
        if not done:
            if (directory / DONE).is_file():  # it is to train for longer
                if later := [after.name for after in stages[number + 1 :] if (run_dir / after.name).is_dir()]:
                    raise ConfigError(
                        f"{directory.name} cannot go on to {end}: stage {later[0]} has started from its model; choose another --run-dir"
                    )
                (checkpoints / ENDED).unlink(missing_ok=True)
                (directory / DONE).unlink()
            directory.mkdir(parents=True, exist_ok=True)
            if not (checkpoints / ENDED).is_file():
                yield job
            if stage and last_step(checkpoints) is None:
                raise ConfigError(
                    f"stage {stage.name} has left no checkpoint in {checkpoints}: trainer.save_freq must be positive"
                )
            write_text(
                directory / DONE,
                json.dumps({"step": last_step(checkpoints), "ended_by_metric": (checkpoints / ENDED).is_file(), "end": end}),
            )
        model = _model_of(checkpoints, stage if number < len(stages) - 1 else None)
        ended_early = (checkpoints / ENDED).is_file()
    if model:
        _point_to(run_dir / "model", model)


def is_on_cpu(content: Mapping[str, Any]) -> bool:
    """Return whether a recipe is for a machine without accelerators."""
    return not {"on_cpu", "sft_on_cpu"}.isdisjoint(defaults_of(content))


def defaults_of(content: Mapping[str, Any]) -> list[str]:
    """Return the names in a recipe's `defaults`."""
    return [part for part in content.get("defaults") or [] if isinstance(part, str)]


def _trainer(content: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return the module that trains. verl's SFT trainer is started by torchrun, with a process per accelerator.

    Raises:
        ConfigError: the number of processes is invalid, or a supervised recipe is to run on several nodes.
    """
    if SUPERVISED not in defaults_of(content):
        return ["verl.trainer.main_ppo"]
    trainer = _settings(content, overrides, "trainer", ("nnodes", "n_gpus_per_node"))
    processes, nodes = (1 if trainer[name] is None else trainer[name] for name in ("n_gpus_per_node", "nnodes"))
    if not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"trainer.n_gpus_per_node must be a number, at least 1, got {processes!r}")
    if nodes != 1:
        raise ConfigError(
            f"this command trains supervised on one node, got trainer.nnodes={nodes!r}: on several, run "
            "`torchrun --nnodes=… -m verl.trainer.sft_trainer --config-dir … --config-name …` on each"
        )
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "verl.trainer.sft_trainer"]


def _point_to(link: Path, model: Path) -> None:
    """Make a link in the run's directory to its model, and print where it is."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(model, link.parent))
    part.replace(link)
    print(f"research_rl: the model is in {link} ({link.readlink()})", flush=True)


def _end(stage: Stage | None, content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings that decide when a job ends; a value is None if the recipe leaves it to verl."""
    if stage:
        return vars(stage.until)
    return _settings(content, overrides, "trainer", ("total_training_steps", "total_epochs"))


def _settings(content: Mapping[str, Any], overrides: Sequence[str], section: str, names: Sequence[str]) -> dict[str, Any]:
    """Return some settings of a section from recipe and overrides; None if neither has them."""
    found = {name: (content.get(section) or {}).get(name) for name in names}
    for override in overrides:
        where, _, name = override_key(override).partition(".")
        if where == section and name in found:  # only these are parsed: other overrides need not be YAML
            found[name] = yaml.safe_load(override.partition("=")[2])
    return found


def _is_done(directory: Path, end: Mapping[str, Any]) -> bool:
    """Return whether a job has ended, and need not go on under the current settings of its end."""
    if not (directory / DONE).is_file():
        return False
    done = json.loads((directory / DONE).read_text(encoding="utf-8"))
    before = done.get("end", end)
    length = "steps" if "steps" in end else "total_training_steps"
    only_length = {**before, length: end[length]} == end
    longer = end[length] != before[length] and not (done["step"] and end[length] and end[length] <= done["step"])
    return only_length and (not longer or done["ended_by_metric"])


def _model_of(checkpoints: Path, before_another: Stage | None) -> Path | None:
    """Return the model of a finished job, exported if necessary; None (and a message) if it has none and no stage starts from it.

    Raises:
        ConfigError: the stage `before_another` has left no model for the next one to start from; or the export failed.
    """
    step = checkpoints / f"global_step_{last_step(checkpoints)}"
    actor = step / "actor" if (step / "actor").is_dir() else step  # the SFT trainer saves without `actor`
    if not (actor / "huggingface").is_dir():
        if before_another:
            raise ConfigError(
                f"stage {before_another.name} has left no model in {actor}, from which the next stage would start"
            )
        print(f"research_rl: no checkpoint in {checkpoints}, so no model is exported")
        return None
    return export(actor)


def override_key(override: str) -> str:
    """Return the key of a Hydra override, without a leading `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def stage_overrides(
    stage: Stage, directory: Path, number: int, model: Path | None, experiment: str, ended_early: bool = False
) -> list[str]:
    """Return the overrides of a stage; `ended_early`: its metric ended the stage before, so that its final model was not measured."""
    until = {key: value for key, value in vars(stage.until).items() if key != "steps" and stage.until.metric}
    step = last_step(directory / "checkpoints")
    settings: dict[str, Any] = {
        "research_rl.stage": stage.name,
        "trainer.experiment_name": f"{experiment}-{stage.name}",
        "research_rl.trajectory_dir": str(directory / "trajectories"),
        "trainer.default_local_dir": str(directory / "checkpoints"),
        "trainer.total_training_steps": stage.until.steps,
        "hydra.run.dir": str(directory / "hydra"),
        # a later stage starts from the final model of the stage before, which verl has measured if that stage ran to its last step. If
        # it did not, and if a stage is run again at its end, the recipe decides whether this model is measured
        **(
            {"trainer.val_before_train": False}
            if number and step != stage.until.steps and not (ended_early and step is None)
            else {}
        ),
        **({MODEL: str(model)} if number else {}),
        **stage.overrides,
    }
    extra = [f"research_rl.until={hydra_value(until)}"] if until else []
    # a method's options are checked by the method, and need not be in the recipe
    return [f"{'++' * ('.method_options.' in key)}{key}={hydra_value(value)}" for key, value in settings.items()] + extra


def hydra_value(value: Any) -> str:
    """Return a value as Hydra's override grammar writes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not value.startswith("${"):
        from hydra.core.override_parser.types import Quote, QuotedString

        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def last_step(checkpoints: Path) -> int | None:
    """Return the step of the last complete checkpoint, or None."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    text = tracker.read_text().strip() if tracker.is_file() else ""
    return int(text) if text.isdecimal() else None  # verl writes it in place: a kill can leave it empty


def run_job(job: Job) -> int:
    """Run a job with its output on this terminal; return the exit code."""
    print(f"research_rl: {f'stage {job.stage}' if job.stage else 'training'} in {job.directory}", flush=True)
    return subprocess.run(job.command, env={**os.environ, **job.environment}, check=False).returncode


def train(recipe: Path, run_dir: Path, overrides: Sequence[str], launch: Launch = run_job, accept_changes: bool = False) -> int:
    """Run all jobs that remain; return 0, or the exit code of the one that failed (HALTED_CODE: a health rule has ended it).

    Raises:
        ConfigError: another process trains in the directory, or it holds a run of another recipe or other overrides
            (with `accept_changes` it goes on with the new ones).
    """
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".train.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is training in {run_dir}: wait for it, or choose another --run-dir") from None
        _check_same(
            run_dir, {"recipe": f"{recipe.resolve().parent.name}/{recipe.name}", "overrides": list(overrides)}, accept_changes
        )
        nothing, left = True, jobs(recipe, run_dir, overrides)
        while (job := next(left, None)) is not None:
            nothing = False
            before = halted(job.directory)  # there is one if a halted run is only measured
            if code := launch(job):
                return code
            if halted(job.directory) != before:
                if code := stopped(job.directory):
                    return code
                left = jobs(recipe, run_dir, overrides)  # the same job again, from an earlier checkpoint
        if nothing:
            print(f"research_rl: done already, in {run_dir}")
    return 0


def _check_same(run_dir: Path, settings: dict[str, Any], accept_changes: bool) -> None:
    path = run_dir / "train.json"
    changed = changed_settings(path, settings)
    if changed and not accept_changes:
        raise ConfigError(
            f"{run_dir} holds a run with other settings ({changed}). Choose another --run-dir, or go on with the new ones: --accept-changes"
        )
    write_text(path, json.dumps(settings, indent=1))


def run_directory(recipe: Path) -> Path:
    """Return the default run directory of a recipe."""
    return Path("runs") / f"{recipe.resolve().parent.name}-{recipe.stem}"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; return the exit code."""
    return _run(make_parser().parse_intermixed_args(arguments))


def command(arguments: list[str] | None = None) -> int:
    """Do the same as `main`, and leave no process behind, whatever ends it. For use as a main program only."""
    options = make_parser().parse_intermixed_args(arguments)
    with leaving_none():
        return _run(options)


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="research-rl train", description=__doc__,
        example="research-rl train recipes/r1_searcher/gpu.yaml --run-dir runs/r1_searcher research_rl.top_k=3",
    )  # fmt: skip
    parser.add_argument("recipe", type=Path, help="a YAML file; the default run directory is named after its folder and file")
    parser.add_argument(
        "--run-dir", type=Path, default=None, help="directory of the run; default: runs/FOLDER-FILE of the recipe"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue a run with other settings than it has had so far"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, and stages.NAME.until.KEY=VALUE")
    return parser


def _run(options: argparse.Namespace) -> int:
    run_dir = options.run_dir or run_directory(options.recipe)
    try:
        code = train(options.recipe, run_dir, options.overrides, accept_changes=options.accept_changes)
    except (ConfigError, MissingExtraError) as error:
        print(f"research-rl train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = 130
    if code and code != HALTED_CODE:
        print(
            f"research-rl train: ended with exit code {code}. The same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
    return code
