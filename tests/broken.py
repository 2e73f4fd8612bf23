"""More than twenty broken set-ups of the quickstart: what breaks each, and what the doctor must say of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import FastAPI
from transformers import AutoTokenizer

from research_rl.questions import write_verl_parquet
from tests.models import tokenizer_like
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights_all_methods"
QUICKSTART = ROOT / "recipes" / "quickstart" / "train.yaml"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def service_app() -> FastAPI:
    """Return a service that finds the same passage for everything."""
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.get("/readyz")(lambda: {"index_id": "here"})

    @app.post("/batch_search")
    def search(body: dict):
        count = len(body["query"])
        return [[[{"id": "1", "contents": "Orla\nOrla was born in Venn."}]] * count, [[1.0]] * count]

    return app


def questions(path: Path, count: int = 40, **changed) -> Path:
    rows = [{"id": n, "question": f"Where was {n} born?", "golden_answers": ["Venn"], **changed} for n in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_verl_parquet(path, rows, "world", path.stem)
    return path


def whole_run(directory: Path) -> Path:
    """Write the questions of a run that has nothing wrong."""
    for name in ("train", "test", "control"):
        questions(directory / "data" / f"{name}.parquet")
    return directory


def blank_answer(run_dir: Path) -> list[str]:
    rows = pq.read_table(run_dir / "data" / "train.parquet").to_pylist()
    rows[3]["reward_model"]["ground_truth"] = [" "]
    pq.write_table(pa.Table.from_pylist(rows), run_dir / "data" / "train.parquet")
    return []


def without_prompts(run_dir: Path) -> list[str]:
    table = pq.read_table(run_dir / "data" / "train.parquet")
    pq.write_table(table.drop_columns(["prompt"]), run_dir / "data" / "train.parquet")
    return []


def cut_short(run_dir: Path) -> list[str]:
    path = run_dir / "data" / "test.parquet"
    path.write_bytes(path.read_bytes()[:100])
    return []


def long_questions(run_dir: Path) -> list[str]:
    questions(run_dir / "data" / "train.parquet", question="Who painted the chapel of the town of the founder? " * 20)
    return []


def no_retrieval_service(run_dir: Path) -> list[str]:
    return [f"research_rl.retrieval.url={os.environ['RETRIEVAL_URL']}/elsewhere"]


def copied_model(run_dir: Path) -> tuple[Path, str]:
    """Return a copy of the quickstart's model, to be broken, and the override that starts from it."""
    shutil.copytree(WEIGHTS, run_dir / "model")
    return run_dir / "model", f"actor_rollout_ref.model.path={run_dir}/model"


def another_index(run_dir: Path) -> list[str]:
    model, override = copied_model(run_dir)
    (model / "research_rl.json").write_text(json.dumps({"indexes": {os.environ["RETRIEVAL_URL"]: "there"}}))
    return [override]


def unheeded_end(run_dir: Path) -> list[str]:
    model, override = copied_model(run_dir)
    tokenizer_like("qwen2-base").save_pretrained(model)
    return [override, "research_rl.method=search_o1", "research_rl.method_options={}"]


def special_tags(run_dir: Path) -> list[str]:
    model, override = copied_model(run_dir)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<search>", "</search>"]})
    tokenizer.save_pretrained(model)
    return [override]


def given(*overrides: str):
    return lambda _: list(overrides)


BROKEN = {  # sentence: (what breaks it, level, check, what is told, the remedy)
    "a key of our section is misspelt": (
        given("+research_rl.max_serches=2"), "error", "section", "unknown keys", "Did you mean 'max_searches'?",
    ),
    "a method option is misspelt": (
        given("+research_rl.method_options.presett=paper"), "error", "section", "does not take these", "Did you mean 'preset'?",
    ),
    "the method cannot be imported": (
        given("research_rl.method=nowhere.Method"), "error", "section", "cannot be imported", "give the dotted path",
    ),
    "the prompt's file is not there": (
        given("++research_rl.method_options.prompt_file=no.txt"), "error", "section", f"looked for in {ROOT}", "give a file's path",
    ),
    "the samples are not the policy's": (
        given(f"{ROLLOUT}.top_p=0.9"), "error", "sampling", "sample from the policy itself", "only validation",
    ),
    "the estimator is unknown": (
        given("algorithm.adv_estimator=gpro"), "error", "estimator", "'gpro' is unknown; valid: ", "Choose one",
    ),
    "the clip range is set where verl does not look": (
        given(f"{ACTOR}.clip_ratio=0.1"), "error", "policy loss", "has no effect", "clip_ratio_high",
    ),
    "dynamic sampling compares what no rollout has": (
        given("+algorithm_option=dapo", "algorithm.filter_groups.metric=acc"),
        "error", "dynamic sampling", "valid: reward, ", "metric=reward",
    ),
    "a group has one rollout": (given(f"{ROLLOUT}.n=1"), "error", "estimator", "leaves nothing to compare", "Raise n"),
    "batch and mini-batch do not divide": (
        given(f"{ACTOR}.ppo_mini_batch_size=12"), "error", "batches", "must be a multiple of", "ppo_mini_batch_size=16",
    ),
    "a response is longer than the context": (
        given("data.max_response_length=2000"), "error", "lengths", "more than the 1024 positions", "Lower them",
    ),
    "an observation is longer than a response": (
        given("research_rl.max_observation_tokens=400"), "error", "budgets", "must be less than data.max_response_length", "Raise the",
    ),
    "an observation cannot hold its own frame": (
        given("research_rl.max_observation_tokens=1"), "error", "budgets", "the frame of an observation", "Raise it well above",
    ),
    "a reward function's file is not there": (
        given("reward.custom_reward_function.path=reward.py"), "error", "reward", "must name a file", "research_rl.method",
    ),
    "a file of questions is not there": (
        given("data.train_files=[nowhere/train.parquet]"), "error", "data", f"looked for in {ROOT}/nowhere", "docs/data.md",
    ),
    "a file of questions was cut short": (cut_short, "error", "data", "no parquet that can be read", "make it again"),
    "a golden answer is blank": (blank_answer, "error", "data", "row 3: reward_model.ground_truth must be", "Make the file again"),
    "the prompts' column is missing": (without_prompts, "error", "data", "must have the column 'prompt'", "Make the file again"),
    "prompts are too long": (long_questions, "error", "data", "40 of 40 prompts are longer", "overlong_prompts=drop"),
    "the service is not there": (
        given(f"research_rl.retrieval.url=http://127.0.0.1:{free_port()}"), "error", "service", "no retrieval service", "Start one",
    ),
    "what answers is no retrieval service": (
        no_retrieval_service, "error", "service", "HTTP 404", "Correct research_rl.retrieval.url",
    ),
    "the service has another index than the model was trained over": (
        another_index, "warning", "service", "should serve index there", "Serve that index",
    ),
    "the chat template ends where the engine does not": (
        unheeded_end, "warning", "prompt", "'<|im_end|>'", "generation_config.json",
    ),
    "tags are special tokens": (special_tags, "warning", "tags", "'</search>', '<search>'", "special=False"),
    "an override is misspelt": (
        given("data.train_batchsize=8"), "error", "recipe", "train_batchsize", "Correct the recipe or the override",
    ),
}  # fmt: skip
