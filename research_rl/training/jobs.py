"""The jobs of a run: one of verl's trainer for every stage, or for a recipe without stages."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_rl.cpu import CPU_ENVIRONMENT, TRAINER_IMPORTS, VLLM_IMPORTS
from research_rl.errors import ConfigError, missing_extra
from research_rl.files import write_text
from research_rl.forks import forked
from research_rl.training.export import export
from research_rl.training.recipe import (
    SUPERVISED,
    defaults_of,
    hydra_value,
    is_on_cpu,
    load_recipe,
    override_key,
    section_settings,
    stages_of,
)
from research_rl.training.rollback import after_rollbacks, go_on
from research_rl.training.stages import ENDED, Stage

try:
    import yaml
except ModuleNotFoundError as error:
    raise missing_extra("PyYAML", "train") from error

DONE = "done.json"
MODEL = "actor_rollout_ref.model.path"


@dataclass(frozen=True)
class Job:
    """One run of verl's trainer: its command, additional environment variables, and the directory it writes to."""

    stage: str
    directory: Path
    command: list[str]
    environment: dict[str, str]


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
        trainer = _trainer(content, others)
        imports = TRAINER_IMPORTS if SUPERVISED in defaults_of(content) else (*TRAINER_IMPORTS, *VLLM_IMPORTS)
        command = [
            *(sys.executable, *(forked(*imports) if cpu else ()), "-m", *trainer),
            *("--config-dir", str(recipe.resolve().parent), "--config-name", recipe.stem),
            *(stage_overrides(stage, directory, number, model, experiment, ended_early) if stage else []),
            *(
                part for part in others if not (model and override_key(part) == MODEL)
            ),  # the starting model is for the first stage
            *slower,
        ]
        environment = {
            **(CPU_ENVIRONMENT if cpu else {}),
            **environment_of_slower,
            "RUN_DIR": str(run_dir),
            "VERL_FILE_LOGGER_PATH": str(directory / f"metrics-{int(time.time())}.jsonl"),
            "TENSORBOARD_DIR": str(directory / "tensorboard"),
        }
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


def _trainer(content: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return the module that trains. verl's SFT trainer is started by torchrun, with a process per accelerator.

    Raises:
        ConfigError: the number of processes is invalid, or a supervised recipe is to run on several nodes.
    """
    if SUPERVISED not in defaults_of(content):
        return ["verl.trainer.main_ppo"]
    trainer = section_settings(content, overrides, "trainer", ("nnodes", "n_gpus_per_node"))
    processes, nodes = (1 if trainer[name] is None else trainer[name] for name in ("n_gpus_per_node", "nnodes"))
    if not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"trainer.n_gpus_per_node must be a number, at least 1, got {processes!r}")
    if nodes != 1:
        raise ConfigError(
            f"this command trains supervised on one node, got trainer.nnodes={nodes!r}: on several, run "
            "`torchrun --nnodes=… -m verl.trainer.sft_trainer --config-dir … --config-name …` on each"
        )
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "verl.trainer.sft_trainer"]


def _end(stage: Stage | None, content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings that decide when a job ends; a value is None if the recipe leaves it to verl."""
    if stage:
        return vars(stage.until)
    return section_settings(content, overrides, "trainer", ("total_training_steps", "total_epochs"))


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


def _point_to(link: Path, model: Path) -> None:
    """Make a link in the run's directory to its model, and print where it is."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(model, link.parent))
    part.replace(link)
    print(f"research_rl: the model is in {link} ({link.readlink()})", flush=True)


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


def last_step(checkpoints: Path) -> int | None:
    """Return the step of the last complete checkpoint, or None."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    text = tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else ""
    return int(text) if text.isdecimal() else None  # verl writes it in place: a kill can leave it empty
