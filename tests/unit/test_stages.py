"""Stages: what a recipe may say about them, when they end, and how a run goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.training.jobs import DONE, jobs, last_step
from research_rl.training.recipe import hydra_value
from research_rl.training.stages import ENDED, Progress, Until, read_stages
from research_rl.training.train import main, train

STAGES = {
    "search": {
        "until": {"steps": 3, "metric": "retrieval_rate", "reaches": 0.9, "window": 2},
        "overrides": {"research_rl.method_options.preset": "stage1_paper", "data.train_max_samples": 350},
    },
    "answer": {"until": {"steps": 5}, "overrides": {"research_rl.method_options.preset": "stage2_paper"}},
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "r" / "cpu.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"defaults": ["ppo_trainer", "research_rl", "on_cpu"], "stages": STAGES}, sort_keys=False))
    return path


def finish(job, step: int) -> None:
    """Leave what verl leaves at the end of a job."""
    checkpoints = job.directory / "checkpoints"
    model = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))


def test_the_stages_run_in_order_and_each_starts_from_the_model_before(recipe, tmp_path):
    seen = []

    def launch(job):
        seen.append(job)
        finish(job, 3 if job.stage == "search" else 5)
        return 0

    assert train(recipe, tmp_path / "run", ["trainer.save_freq=1"], launch) == 0
    assert [job.stage for job in seen] == ["search", "answer"]
    first, second = (job.command for job in seen)
    assert "trainer.total_training_steps=3" in first
    assert "++research_rl.method_options.preset='stage1_paper'" in first
    assert "research_rl.until={metric:'retrieval_rate',reaches:0.9,window:2}" in first
    assert not any("model.path" in part for part in first)
    model = tmp_path / "run" / "search" / "checkpoints" / "global_step_3" / "actor" / "huggingface"
    assert f"actor_rollout_ref.model.path='{model}'" in second
    assert not any(part.startswith("research_rl.until") for part in second)
    assert first[-1] == second[-1] == "trainer.save_freq=1"
    assert seen[0].environment["VERL_PLATFORM"] == "cpu"


def test_a_finished_stage_is_not_run_again_and_a_broken_one_is(recipe, tmp_path):
    seen = []

    def launch(job):
        seen.append(job.stage)
        if job.stage == "search":
            finish(job, 3)
            return 0
        if len(seen) < 3:
            return 1
        finish(job, 5)
        return 0

    assert train(recipe, tmp_path / "run", [], launch) == 1
    assert train(recipe, tmp_path / "run", [], launch) == 0
    assert train(recipe, tmp_path / "run", [], launch) == 0
    assert seen == ["search", "answer", "answer"]


def test_killed_after_the_metric_ended_a_stage_the_next_one_starts(recipe, tmp_path):
    checkpoints = tmp_path / "run" / "search" / "checkpoints"
    model = checkpoints / "global_step_2" / "actor" / "huggingface"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    (checkpoints / ENDED).write_text("{}")
    job = next(jobs(recipe, tmp_path / "run", []))
    assert job.stage == "answer"
    assert "global_step_2" in " ".join(job.command)
    done = json.loads((tmp_path / "run" / "search" / DONE).read_text())
    assert (done["step"], done["ended_by_metric"], done["end"]["reaches"]) == (2, True, 0.9)


def test_when_a_stage_ends_can_be_overridden(recipe, tmp_path):
    job = next(jobs(recipe, tmp_path / "run", ["stages.search.until.steps=9"]))
    assert "trainer.total_training_steps=9" in job.command
    job = next(jobs(recipe, tmp_path / "other", ["stages.search.until.metric=well_formed"]))
    assert any("metric:'well_formed'" in part for part in job.command)
    with pytest.raises(ConfigError, match=r"until\.steps must be a number, got 'ten'"):
        next(jobs(recipe, tmp_path / "run", ["stages.search.until.steps=ten"]))
    with pytest.raises(ConfigError, match="NAME one of: search, answer"):
        next(jobs(recipe, tmp_path / "run", ["stages.third.until.steps=9"]))


def test_a_starting_model_named_on_the_command_line_is_the_first_stages_alone(recipe, tmp_path):
    seen = []

    def launch(job):
        seen.append(job.command)
        finish(job, 3)
        return 0

    for prefix in ("", "++"):
        assert train(recipe, tmp_path / f"run{prefix}", [f"{prefix}actor_rollout_ref.model.path=mine", "a=1"], launch) == 0
    for first, second in (seen[:2], seen[2:]):
        assert first[-2].endswith("actor_rollout_ref.model.path=mine")
        paths = [part for part in second if "actor_rollout_ref.model.path=" in part]
        assert len(paths) == 1
        assert "global_step_3" in paths[0]
        assert first[-1] == second[-1] == "a=1"


@pytest.mark.parametrize("key", ["trainer.total_training_steps", "trainer.default_local_dir", "+hydra.run.dir"])
def test_what_each_stage_sets_for_itself_cannot_be_set_for_all(recipe, tmp_path, key):
    with pytest.raises(ConfigError, match="each stage sets this itself; use instead: "):
        next(jobs(recipe, tmp_path / "run", [f"{key}=9"]))


def test_a_recipe_without_stages_is_one_job(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("defaults: [ppo_trainer, research_rl]\n")
    seen = []
    assert train(path, tmp_path / "run", ["a=1"], lambda job: seen.append(job) or 0) == 0
    assert seen[0].directory == tmp_path / "run"
    assert seen[0].command[-5:] == ["--config-dir", str(tmp_path), "--config-name", "train", "a=1"]
    assert "VERL_PLATFORM" not in seen[0].environment


def test_a_directory_with_another_run_is_refused_unless_the_change_is_accepted(recipe, tmp_path, capsys):
    def launch(job):
        finish(job, 3 if job.stage == "search" else 5)
        return 0

    assert train(recipe, tmp_path / "run", ["a=1"], launch) == 0
    with pytest.raises(ConfigError, match="--accept-changes"):
        train(recipe, tmp_path / "run", ["a=2"], launch)
    assert train(recipe, tmp_path / "run", ["a=2"], launch, accept_changes=True) == 0
    told = capsys.readouterr().out
    assert "done already" in told
    assert "goes on with other settings" in told
    assert "overrides: without ['a=1'] and with ['a=2']" in told


def test_a_finished_run_can_be_made_longer(tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text("defaults: [ppo_trainer, research_rl]\ntrainer: {total_training_steps: 40}\n")
    seen = []

    def launch(job):
        seen.append(job.command[-1])
        finish(job, 40 if len(seen) == 1 else 80)
        return 0

    assert train(path, tmp_path / "run", [], launch) == 0
    longer = ["trainer.total_training_steps=80"]
    assert train(path, tmp_path / "run", longer, launch, accept_changes=True) == 0
    assert seen == ["train", "trainer.total_training_steps=80"]
    assert "done already" not in capsys.readouterr().out
    for same_or_shorter in (longer, [], ["trainer.total_training_steps=50"]):
        assert train(path, tmp_path / "run", same_or_shorter, launch, accept_changes=True) == 0
    assert len(seen) == 2


def test_the_last_stage_can_be_made_longer_and_an_earlier_one_only_while_it_is_the_last(recipe, tmp_path):
    seen = []

    def launch(job):
        steps = next(part for part in job.command if part.startswith("trainer.total_training_steps"))
        seen.append((job.stage, steps.partition("=")[2]))
        for checkpoint in (job.directory / "checkpoints").glob("global_step_*"):
            shutil.rmtree(checkpoint)
        finish(job, int(seen[-1][1]))
        return 0

    assert train(recipe, tmp_path / "run", [], launch) == 0
    assert train(recipe, tmp_path / "run", ["stages.answer.until.steps=9"], launch, accept_changes=True) == 0
    assert seen == [("search", "3"), ("answer", "5"), ("answer", "9")]
    with pytest.raises(ConfigError, match="answer has started from its model"):
        train(recipe, tmp_path / "run", ["stages.search.until.steps=9"], launch, accept_changes=True)
    assert len(seen) == 3


def test_a_stage_that_its_metric_ended_goes_on_when_the_metric_is_to_reach_more(recipe, tmp_path):
    first, second = "stages.search.until.reaches=0.5", "stages.search.until.reaches=0.99"

    def launch(job):
        finish(job, 2)
        (job.directory / "checkpoints" / ENDED).write_text("{}")
        return 0

    run = jobs(recipe, tmp_path / "run", [first])
    launch(next(run))
    assert next(run).stage == "answer"
    shutil.rmtree(tmp_path / "run" / "answer")
    assert next(jobs(recipe, tmp_path / "run", [first, "stages.search.until.steps=80"])).stage == "answer"
    shutil.rmtree(tmp_path / "run" / "answer")
    assert next(jobs(recipe, tmp_path / "run", [second])).stage == "search"


def test_a_run_that_is_only_measured_counts_as_nothing_done(recipe, tmp_path):
    seen = []

    def launch(job):
        seen.append(job.stage)
        if "trainer.val_only=true" not in job.command:
            finish(job, 3 if job.stage == "search" else 5)
        return 0

    measure = ["trainer.val_only=true"]
    assert train(recipe, tmp_path / "run", measure, launch) == 0
    assert train(recipe, tmp_path / "run", [], launch, accept_changes=True) == 0
    assert train(recipe, tmp_path / "run", measure, launch, accept_changes=True) == 0
    assert seen == ["search", "search", "answer", "answer"]


def test_a_stage_whose_forerunner_was_ended_by_its_metric_is_measured_before_it_starts_if_the_recipe_measures(recipe, tmp_path):
    for early in (True, False):
        run = jobs(recipe, tmp_path / str(early), [])
        first = next(run)
        finish(first, 2)
        if early:
            (first.directory / "checkpoints" / ENDED).write_text("{}")
        assert ("trainer.val_before_train=false" in next(run).command) != early


def test_an_override_that_is_no_yaml_is_handed_on_as_it_is(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("defaults: [ppo_trainer, research_rl]\n")
    assert next(jobs(path, tmp_path / "run", ["+a=@b", "a=%c"])).command[-2:] == ["+a=@b", "a=%c"]


def test_a_run_of_a_version_that_noted_no_end_is_done(recipe, tmp_path):
    def launch(job):
        finish(job, 3 if job.stage == "search" else 5)
        return 0

    assert train(recipe, tmp_path / "run", [], launch) == 0
    for path in (tmp_path / "run").glob("*/done.json"):
        path.write_text(json.dumps({"step": 3, "ended_by_metric": False}))
    assert list(jobs(recipe, tmp_path / "run", [])) == []


def test_two_processes_do_not_train_in_one_directory(recipe, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".train.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is training"):
            train(recipe, tmp_path / "run", [], lambda job: 0)


def test_a_stage_that_left_no_model_is_told(recipe, tmp_path):
    with pytest.raises(ConfigError, match="save_freq must be positive"):
        train(recipe, tmp_path / "run", [], lambda job: 0)


def test_a_tracker_that_a_kill_left_empty_is_no_checkpoint(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").touch()
    assert last_step(tmp_path) is None


def test_a_missing_recipe_is_told(capsys):
    assert main(["nowhere.yaml"]) == 1
    assert "no recipe nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"a": {"until": {"steps": 1}, "override": {}}}, "unknown keys"),
        ({"a": {"until": {}}}, "until.steps is missing"),
        ({"a": {"until": {"steps": 0}}}, "at least 1"),
        ({"a": {"until": {"steps": 1, "metric": "em"}}}, "belong together"),
        ({"a": {"until": {"steps": 1, "metric": "em", "reaches": "0.9"}}}, "must be a number"),
        ({"a": {"until": {"step": 1}}}, "valid: steps, metric, reaches, window"),
    ],
)
def test_a_wrong_stage_is_told_before_anything_starts(section, told):
    with pytest.raises(ConfigError, match=told):
        read_stages(section)


def reached(until: Until, *rates: float, validate: bool = False, attempts: tuple[float, ...] = (1.0,)) -> float | None:
    """Tell a stage's progress one record a step, in every attempt."""
    progress = Progress(until)
    for attempt in attempts:
        for step, rate in enumerate(rates, 1):
            metrics = {"retrieval_rate": rate * attempt / attempts[-1]}
            progress.add({"validate": validate, "split": "stage_1", "step": step, "attempt": attempt, "metrics": metrics})
    return progress.reached()


def test_a_stage_ends_when_the_moving_average_is_reached_and_not_before_the_window_is_full():
    until = Until(metric="retrieval_rate", reaches=0.9, window=2)
    assert reached(until, 1.0) is None
    assert reached(until, 0.7, 1.0) is None
    assert reached(until, 0.0, 0.85, 1.0) == pytest.approx(0.925)
    assert reached(until, 1.0, 1.0, validate=True) is None
    assert reached(until, 0.85, 1.0, attempts=(0.1, 1.0)) == pytest.approx(0.925)  # the first attempt's rates were lower
    assert reached(until, 0.85, 1.0, attempts=(1.0, 0.1, 1.0)) == pytest.approx(0.925)
    with pytest.raises(ConfigError, match="valid: retrieval_rate"):
        reached(Until(metric="retrieval", reaches=0.9), 1.0)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(alphabet="ab'\\/ ,={}", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(values)
def test_any_value_survives_hydras_grammar(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={hydra_value(value)}").value()
    parsed = parsed.text if hasattr(parsed, "text") else parsed
    assert _plain(parsed) == value


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if hasattr(value, "text") else value


def test_the_model_of_each_stage_and_of_a_run_without_stages_is_exported_where_it_ends(recipe, tmp_path, monkeypatch):
    from research_rl.training import jobs as module

    made = []
    monkeypatch.setattr(module, "export", lambda actor: made.append(actor) or actor / "huggingface")
    steps = {"search": 3, "answer": 5, "": 7}

    def launch(job):
        assert not any("save_contents" in part for part in job.command)
        finish(job, steps[job.stage])
        return 0

    assert train(recipe, tmp_path / "run", [], launch) == 0
    plain = tmp_path / "train.yaml"
    plain.write_text("defaults: [ppo_trainer, research_rl]\n")
    assert train(plain, tmp_path / "plain", [], launch) == 0
    ends = [("run/search", 3), ("run/answer", 5), ("plain", 7)]
    assert made == [tmp_path / where / "checkpoints" / f"global_step_{step}" / "actor" for where, step in ends]


SFT = "trainer: {total_epochs: 2, n_gpus_per_node: 4}\n"


def supervised(tmp_path, defaults: str) -> Path:
    path = tmp_path / "r" / "cold_start.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"defaults: [{defaults}]\n{SFT}")
    return path


def test_a_supervised_recipe_runs_verls_sft_trainer_with_a_process_per_accelerator(tmp_path):
    path = supervised(tmp_path, "sft_trainer_engine, _self_")
    job = next(jobs(path, tmp_path / "run", ["data.train_batch_size=8"]))
    assert job.command[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", "-m", "verl.trainer.sft_trainer"),
        *("--config-dir", str(path.parent), "--config-name", "cold_start", "data.train_batch_size=8"),
    ]
    assert "VERL_PLATFORM" not in job.environment
    assert job.environment["RUN_DIR"] == str(tmp_path / "run")
    path = supervised(tmp_path, "sft_trainer_engine, sft_on_cpu, _self_")
    job = next(jobs(path, tmp_path / "cpu", ["trainer.n_gpus_per_node=1"]))
    assert "--nproc_per_node=1" in job.command
    assert job.environment["VERL_PLATFORM"] == "cpu"


@pytest.mark.parametrize(
    ("override", "told"), [("trainer.nnodes=2", "on one node"), ("trainer.n_gpus_per_node=0", "at least 1, got 0")]
)
def test_what_a_supervised_recipe_cannot_do_is_told(tmp_path, override, told):
    with pytest.raises(ConfigError, match=told):
        next(jobs(supervised(tmp_path, "sft_trainer_engine"), tmp_path / "run", [override]))


def test_a_supervised_run_goes_on_is_done_once_and_leaves_its_model_where_the_next_step_finds_it(tmp_path, capsys):
    path, seen = supervised(tmp_path, "sft_trainer_engine"), []

    def launch(job):
        seen.append(job)
        if len(seen) == 1:
            return 1  # interrupted
        step = job.directory / "checkpoints" / "global_step_12"
        (step / "huggingface").mkdir(parents=True)
        (step / "huggingface" / "model.safetensors").write_text("weights")
        (step.parent / "latest_checkpointed_iteration.txt").write_text("12")
        return 0

    run = tmp_path / "run"
    assert [train(path, run, [], launch) for _ in range(3)] == [1, 0, 0]
    assert len(seen) == 2
    assert json.loads((run / DONE).read_text())["step"] == 12
    assert (run / "model" / "model.safetensors").read_text() == "weights"
    assert not (run / "model").readlink().is_absolute()  # the run's directory can be moved
    told = capsys.readouterr().out
    assert "done already" in told
    assert told.count(f"the model is in {run / 'model'}") == 2
