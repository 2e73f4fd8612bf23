"""``python -m quickstart.rehearsal RECIPE``: a recipe for GPUs, for some steps on a CPU, before a GPU is taken.

Its method, template, algorithm, stages and checkpoints are used as they are, with a small model of the same family, which has
learnt some demonstrations of the protocol by heart, and on the questions of the quickstart's world. What is overridden: sizes, and
what belongs to the device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console

from data_preprocess.world.write import write_world
from quickstart.main_program import run_program
from quickstart.preflight import check, remove_run
from quickstart.rehearsable import composed
from quickstart.rehearsed import outcome, show
from quickstart.stand_in import stand_in, teach
from quickstart.training import run_child, train
from research_rl.command_line import Parser
from research_rl.cpu import CPU_ENVIRONMENT
from research_rl.errors import ConfigError
from research_rl.files import write_text
from research_rl.training.jobs import MODEL
from research_rl.training.processes import start_service, wait_until_healthy
from research_rl.training.recipe import flat, hydra_value, override_key, run_directory, stages_of

ROOT = Path(__file__).parents[1]
QUESTIONS, ROLLOUTS, HELD_OUT, DEMONSTRATIONS = 4, 4, 4, 12
PROMPT, RESPONSE, TURN, OBSERVATION = 1024, 1536, 128, 384  # tokens, at most
STAND_IN = "model_stand_in"  # in a run's directory; it also tells a rehearsal from a run that must not be deleted
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Rehearse a recipe; return the exit code."""
    options = make_parser().parse_intermixed_args(arguments)
    return run_program("rehearsal", lambda: run(options), console, "The same command begins again.")


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="python -m quickstart.rehearsal",
        description=__doc__,
        example="python -m quickstart.rehearsal recipes/research/gpu.yaml --model Qwen/Qwen2.5-7B --steps 3",
    )
    parser.add_argument("recipe", type=Path, help="a recipe for GPUs")
    parser.add_argument("--model", default=None, help="directory or hub id; its weights are not read (default: the recipe's)")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps of each stage")
    parser.add_argument(
        "--run-dir", type=Path, default=None, help="default: runs/rehearsal-FOLDER-FILE; an earlier one is deleted"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the world, of the small model and of sampling")
    parser.add_argument("--port", type=int, default=8765, help="port of the service")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    return parser


def run(options: argparse.Namespace) -> int:
    """Do all parts, print and write what came of them; return the exit code.

    Raises:
        ConfigError, DataError, GenerationError, MissingExtraError, RetrievalError: what ended it.
    """
    from research_rl.codec import load_codec
    from research_rl.verl_plugin.config import chat_template_kwargs

    default = run_directory(options.recipe)
    run_dir: Path = (options.run_dir or default.with_name(f"rehearsal-{default.name}")).resolve()
    config = composed(options, run_dir)
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / STAND_IN).is_dir():
        raise ConfigError(f"{run_dir} holds something else than a rehearsal: it is not deleted. Choose another --run-dir")
    source = config.actor_rollout_ref.model.path
    check(run_dir, (options.port,), (), "--port")
    started = time.monotonic()
    model, url = run_dir / STAND_IN, f"http://127.0.0.1:{options.port}"
    console.rule("1/3  A small model of the same family, and a world")
    # aside: an earlier rehearsal is deleted once this one can begin, and its model may be the one to stand in for
    with TemporaryDirectory() as folder:
        changed = stand_in(source, Path(folder, "model"), options.seed)
        remove_run(run_dir)
        write_text(run_dir / "settings.json", json.dumps({name: str(value) for name, value in vars(options).items()}, indent=1))
        shutil.move(Path(folder, "model"), model)
    data = run_dir / "data"
    # trained on the questions that are demonstrated: for others the small model would write nothing that earns a reward
    write_world(data, options.seed, 0.3, {"train": DEMONSTRATIONS, "dev": 8, "test": HELD_OUT})
    index = [
        sys.executable,
        "-m",
        "rag_serving.cli",
        "index",
        "--corpus",
        str(data / "corpus.jsonl"),
        "--out",
        str(run_dir / "index"),
    ]
    run_child(index, run_dir / "index.log", console, lambda: "indexing")
    log = run_dir / "service.log"
    wait_until_healthy(start_service(run_dir / "index", options.port, log), url, log)

    console.rule("2/3  Demonstrations, learnt by heart")
    rows = demonstrate(run_dir, config, model, url)
    kwargs = chat_template_kwargs(config.data)
    steps, loss = teach(model, load_codec(str(model), bos=config.research_rl.get("bos"), chat_template_kwargs=kwargs), rows)
    console.print(f"{len(rows)} demonstrations, {steps} steps, {loss:.3f} nats a token left", highlight=False)

    console.rule("3/3  The recipe")
    os.environ.update(CPU_ENVIRONMENT)  # every process of the training inherits it
    given = argparse.Namespace(
        recipe=options.recipe,
        seed=options.seed,
        steps=None,
        overrides=overrides(config, options.recipe, options.steps, model, data, options.overrides),
    )
    train(run_dir, given, [url, url], console, lambda name, seconds: None)
    found = list(outcome(run_dir, options.recipe))
    told = {
        "recipe": f"{options.recipe.resolve().parent.name}/{options.recipe.name}",
        "model": str(source),
        "sizes": changed,
        "seconds": round(time.monotonic() - started),
        "stages": found,
    }
    write_text(run_dir / "rehearsal.json", json.dumps(told, indent=1))
    show(told, run_dir, console)
    return 0


def demonstrate(run_dir: Path, config: Any, model: Path, url: str) -> list[dict[str, Any]]:
    """Make demonstrations of the recipe's protocol with the small model's tokenizer, and return the rows.

    Raises:
        ConfigError: the command failed.
    """
    import pyarrow.parquet as pq
    from omegaconf import OmegaConf

    section: Any = OmegaConf.to_container(config.research_rl, resolve=True)
    out, data = run_dir / "demonstrations", run_dir / "data"
    kwargs = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create())
    command = [
        sys.executable, "-m", "data_preprocess", "demonstrations", "--out", str(out), "--questions", str(data / "train.jsonl"),
        "--passages", str(data / "corpus.jsonl"), "--rows", str(DEMONSTRATIONS), "--method", section["method"],
        "--method-options", json.dumps(section.get("method_options") or {}), "--retrieval-url", url, "--top-k", str(section["top_k"]),
        "--tokenizer", str(model), "--max-tokens", str(RESPONSE), "--chat-template-kwargs", json.dumps(kwargs),
    ]  # fmt: skip  # options beside their values
    run_child(command, run_dir / "demonstrations.log", console, lambda: "making demonstrations")
    return pq.read_table(out / "train.parquet").to_pylist()


def overrides(config: Any, recipe: Path, steps: int, model: Path, data: Path, given: Sequence[str] = ()) -> list[str]:
    """Return what differs from the recipe: the device's settings (research_rl/config/on_cpu.yaml), sizes, model and questions.

    `given`: the user's own overrides, which come last; a model among them is the one to stand in for.
    """
    updates = max(1, config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size)  # per batch: kept
    questions = -(-QUESTIONS // updates) * updates  # at least QUESTIONS, and as many in each update
    section = config.research_rl
    settings = flat(yaml.safe_load((ROOT / "research_rl" / "config" / "on_cpu.yaml").read_text(encoding="utf-8")))
    settings |= {
        MODEL: str(model),
        "data.train_files": [str(data / "train.parquet")],
        "data.val_files": [str(data / "test.parquet")],
        "data.train_batch_size": questions,
        "data.max_prompt_length": min(PROMPT, config.data.max_prompt_length),
        "data.max_response_length": min(RESPONSE, config.data.max_response_length),
        "data.val_max_samples": HELD_OUT,
        "data.seed": 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": questions // updates,
        "actor_rollout_ref.rollout.n": min(ROLLOUTS, config.actor_rollout_ref.rollout.n),
        # the logits of a large vocabulary take most of the memory
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": PROMPT + RESPONSE,
        "trainer.test_freq": -1,
        "trainer.save_freq": steps,
        "trainer.logger": ["console", "file"],
    }
    for key, most in (("max_turn_tokens", TURN), ("max_observation_tokens", OBSERVATION)):
        if section.get(key):
            settings[f"research_rl.{key}"] = min(section[key], most)
    if kept := section.get("trained_rollouts"):  # of n, as before: at least 2, and fewer than n
        n = settings["actor_rollout_ref.rollout.n"]
        settings["research_rl.trained_rollouts"] = max(2, kept * n // config.actor_rollout_ref.rollout.n)
    stages, _ = stages_of(recipe, [])
    length = [f"stages.{stage.name}.until.steps={steps}" for stage in stages] or [f"trainer.total_training_steps={steps}"]
    # `++` adds a key that is not there: some keys of verl are in no structured configuration
    return [f"++{key}={hydra_value(value)}" for key, value in settings.items()] + [
        *length,
        *(one for one in given if override_key(one) != MODEL),
    ]


if __name__ == "__main__":
    sys.exit(main())
