"""A run that a health rule ends: it is not done, says so, and goes on from a checkpoint before the trouble with a lower learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research_rl.training.health import Health, Watch
from research_rl.training.jobs import DONE, last_step
from research_rl.training.rollback import (
    FIGURES,
    HALTED,
    HALTED_CODE,
    LOG,
    TRACKER,
    UNHEALTHY,
    append,
    halted,
    replay,
    roll_back,
)
from research_rl.training.train import main, train


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text("defaults: [ppo_trainer, research_rl]\ntrainer: {total_training_steps: 40}\n")
    return path


def save(run: Path, *steps: int, unhealthy: bool = False) -> None:
    """Leave what verl leaves when it has saved."""
    for step in steps:
        actor = run / "checkpoints" / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        (actor / "model.pt").touch()
        if unhealthy:
            (actor.parent / UNHEALTHY).write_text("{}")
        (run / "checkpoints" / TRACKER).write_text(str(step))


def alarm(run: Path, action: str, step: int, **changed) -> dict:
    """Leave what the trainer leaves when a rule has ended it."""
    told = {
        "step": step, "rule": "format", "metric": "health/well_formed_rate", "value": 0.1, "threshold": 0.5, "action": action,
        "since": step, "message": "…", "window": 5, "time": float(step), "lr": 1e-6, "lr_factor": 0.5, "times": 2, **changed,
    }  # fmt: skip
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / HALTED).write_text(json.dumps(told))
    return told


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def test_a_halted_run_is_not_done_says_so_and_goes_on_by_the_same_command(recipe, tmp_path, capsys):
    run, seen = tmp_path / "run", []

    def launch(job):
        seen.append(job.command)
        save(run, 7 if len(seen) == 1 else 40)
        if len(seen) == 1:
            alarm(run, "halt", 7)
        return 0

    assert train(recipe, run, [], launch) == HALTED_CODE
    assert not (run / DONE).exists()
    told = capsys.readouterr().err
    assert f"halted by health rule format at step 7. Results so far are in {run}" in told
    assert "research_rl.health.rules.format.action=warn" in told
    assert train(recipe, run, [], launch) == 0
    assert json.loads((run / DONE).read_text())["step"] == 40
    assert len(seen) == 2


def test_the_command_line_ends_with_the_code_of_a_halt_and_no_second_explanation(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("research_rl.training.train.train", lambda *_, **__: HALTED_CODE)
    assert main([str(recipe), "--run-dir", str(tmp_path / "run")]) == HALTED_CODE
    assert capsys.readouterr().err == ""


def test_a_rollback_goes_on_from_before_the_trouble_with_a_lower_learning_rate(recipe, tmp_path, capsys):
    run, seen = tmp_path / "run", []

    def launch(job):
        seen.append((last_step(run / "checkpoints"), job.command[-1], job.environment.get("RESEARCH_RL_LR_FROM_CONFIG")))
        if len(seen) == 1:
            save(run, 5, 10, 15, 20)
            alarm(run, "rollback", 18)
        else:
            save(run, 40)
        return 0

    assert train(recipe, run, ["actor_rollout_ref.actor.optim.lr=1e-6"], launch) == 0
    lower = "actor_rollout_ref.actor.optim.lr=5e-07"
    assert seen == [(None, "actor_rollout_ref.actor.optim.lr=1e-6", None), (10, lower, "1")]
    left = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert left == {
        "global_step_5", "global_step_10", "rolled_back_1_global_step_15", "rolled_back_1_global_step_20", "global_step_40",
    }  # fmt: skip
    (line,) = lines(run)
    assert (line["step"], line["to_step"], line["rule"], line["action"], line["lr"]) == (18, 10, "format", "rolled_back", 5e-7)
    assert "rolled back from step 18 to step 10: format" in capsys.readouterr().out
    assert json.loads((run / DONE).read_text())["step"] == 40


def test_a_rolled_back_run_keeps_its_learning_rate_when_it_is_interrupted(recipe, tmp_path):
    run, seen = tmp_path / "run", []

    def launch(job):
        seen.append(job.command[-1])
        if len(seen) == 1:
            save(run, 5)
            alarm(run, "rollback", 12)
        return int(len(seen) == 2)

    assert train(recipe, run, [], launch) == 1
    assert train(recipe, run, [], launch) == 0
    assert seen[1:] == ["actor_rollout_ref.actor.optim.lr=5e-07"] * 2


def test_a_run_is_rolled_back_only_so_many_times(recipe, tmp_path, capsys):
    run, seen = tmp_path / "run", []

    def launch(job):
        seen.append(job.command[-1])
        if len(seen) == 1:
            save(run, 5)
        alarm(run, "rollback", 12, time=float(len(seen)), lr=1e-6 / 2 ** (len(seen) - 1))
        return 0

    assert train(recipe, run, [], launch) == HALTED_CODE
    assert [part.rpartition("=")[2] for part in seen[1:]] == ["5e-07", "2.5e-07"]
    assert "not rolled back: it has been rolled back 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["unhealthy", "emptied"])
def test_without_a_healthy_checkpoint_before_the_trouble_nothing_is_touched(tmp_path, trouble):
    save(tmp_path, 3, unhealthy=trouble == "unhealthy")
    if trouble == "emptied":  # as verl leaves what is beyond max_actor_ckpt_to_keep
        (tmp_path / "checkpoints" / "global_step_3" / "actor" / "model.pt").unlink()
    before = sorted(tmp_path.rglob("*"))
    halt = alarm(tmp_path, "rollback", 12)
    why = roll_back(tmp_path, halt)
    assert "no whole checkpoint of step 6 or before" in why
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "checkpoints" / HALTED])


def test_the_checkpoint_whose_weights_made_the_first_bad_rollouts_is_not_gone_back_to(tmp_path):
    save(tmp_path, 5, 6, 7)
    assert roll_back(tmp_path, alarm(tmp_path, "rollback", 8, window=1)) == ""  # step 8's rollouts are those of checkpoint 7
    assert last_step(tmp_path / "checkpoints") == 6


def test_a_run_that_had_saved_nothing_before_the_trouble_begins_again(tmp_path):
    save(tmp_path, 8)
    assert roll_back(tmp_path, alarm(tmp_path, "rollback", 12)) == ""
    assert last_step(tmp_path / "checkpoints") is None
    assert (tmp_path / "checkpoints" / "rolled_back_1_global_step_8").is_dir()
    assert lines(tmp_path)[0]["to_step"] == 0


def test_trouble_that_lasted_several_steps_is_counted_from_its_first(tmp_path):
    save(tmp_path, 5, 10)
    assert roll_back(tmp_path, alarm(tmp_path, "rollback", 16, since=12)) == ""
    assert last_step(tmp_path / "checkpoints") == 5


def test_a_rollback_that_was_interrupted_when_nearly_done_is_not_done_twice(tmp_path):
    save(tmp_path, 5, 10)
    halt = alarm(tmp_path, "rollback", 12)
    assert roll_back(tmp_path, halt) == ""
    alarm(tmp_path, "rollback", 12)  # killed before this file was removed
    assert roll_back(tmp_path, halt) == ""
    assert halted(tmp_path) is None
    assert len(lines(tmp_path)) == 1


def test_a_rollback_that_was_interrupted_before_is_done_by_the_next_start(recipe, tmp_path):
    run, seen = tmp_path / "run", []
    save(run, 5, 10)
    alarm(run, "rollback", 12)

    def launch(job):
        seen.append((last_step(run / "checkpoints"), job.command[-1]))
        return 0

    assert train(recipe, run, [], launch) == 0
    assert seen == [(5, "actor_rollout_ref.actor.optim.lr=5e-07")]


def test_a_measurement_leaves_a_halted_run_as_it_is(recipe, tmp_path):
    run = tmp_path / "run"
    save(run, 5)
    alarm(run, "halt", 12)
    assert train(recipe, run, ["trainer.val_only=true"], lambda _: 0) == 0
    assert halted(run) is not None


def test_a_resumed_watch_knows_the_best_of_the_steps_before_and_of_a_step_run_twice_the_last(tmp_path):
    for step, value in [(1, 0.9), (2, 0.1), (3, 0.1), (2, 0.9)]:
        append(tmp_path / FIGURES, {"step": step, "metrics": {"health/search_rate": value}})
    rules = Health.from_mapping({"rules": {"mine": {"metric": "health/search_rate", "falls_by": 0.5}}}).rules
    watch = Watch(rules)
    replay(watch, tmp_path, before=3)
    assert not watch.standing
    assert [found.rule for found in watch.see(3, {"health/search_rate": 0.4})] == ["mine"]
    replay(Watch(rules), tmp_path / "new", before=1)
