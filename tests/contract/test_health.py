"""The health rules in verl's trainer: verl's own loop saves, or does not, and ends; a lower learning rate outlives a checkpoint."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow


class Trainer:
    """What verl's `PPOTrainer.fit` does around a step, as far as saving and ending are concerned."""

    def __init__(self, directory, rules, save_freq=10, steps=30):
        trainer = {"default_local_dir": str(directory / "checkpoints"), "save_freq": save_freq}
        optim = {"actor": {"optim": {"lr": 1e-6}}}
        self.config = OmegaConf.create(
            {"research_rl": {"health": {"rules": rules}}, "trainer": trainer, "actor_rollout_ref": optim}
        )
        self.global_steps, self.total_training_steps, self.saved, self.alarms = 1, steps, [], []

    def fit(self, values):
        from research_rl.verl_plugin.health import monitor_of

        while self.global_steps <= self.total_training_steps:
            is_last_step = self.global_steps >= self.total_training_steps
            metrics = {"actor/loss": values.get(self.global_steps, 1.0), "table": {}}
            monitor_of(self).judge(metrics)
            self.alarms.append(metrics["health/alarms"])
            save_freq = self.config.trainer.save_freq
            if save_freq > 0 and (is_last_step or self.global_steps % save_freq == 0):
                self.saved.append(self.global_steps)
            self.global_steps += 1
        return self


def rule(**keys):
    return {"mine": {"metric": "actor/loss", "below": 0.5, **keys}}


def test_verls_loop_decides_on_saving_and_on_its_end_as_this_test_has_it():
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    source = " ".join(inspect.getsource(PPOTrainer.fit).split())
    update, save = source.index("batch = self.step(metrics, self.timing_raw)"), source.index("self._save_checkpoint()")
    condition = (
        "if self.config.trainer.save_freq > 0 and ( is_last_step or self.global_steps % self.config.trainer.save_freq == 0 )"
    )
    assert update < source.index(condition) < save
    assert "self.global_steps <= self.total_training_steps:" in source


def test_an_alarm_that_warns_changes_nothing_but_what_is_told(tmp_path, capsys):
    done = Trainer(tmp_path, rule()).fit({4: 0.1, 5: 0.1})
    assert done.saved == [10, 20, 30]
    assert done.alarms[2:6] == [0, 1, 1, 0]
    (line,) = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert (line["step"], line["rule"], line["metric"], line["value"], line["threshold"], line["action"]) == (
        4, "mine", "actor/loss", 0.1, 0.5, "warn",
    )  # fmt: skip
    assert capsys.readouterr().err == f"research_rl: {line['message']}\n"


def test_an_alarm_that_saves_makes_verl_save_at_its_step_alone(tmp_path):
    assert Trainer(tmp_path, rule(action="save")).fit({4: 0.1, 5: 0.1}).saved == [4, 10, 20, 30]
    assert Trainer(tmp_path / "never", rule(action="save"), save_freq=-1).fit({4: 0.1}).saved == [4]


def test_an_alarm_that_halts_ends_the_run_after_a_checkpoint_and_leaves_word(tmp_path):
    done = Trainer(tmp_path, rule(action="halt")).fit({4: 0.1})
    assert (done.saved, done.global_steps) == ([4], 5)
    told = json.loads((tmp_path / "checkpoints" / "halted.json").read_text())
    assert (told["rule"], told["step"], told["action"], told["lr"]) == ("mine", 4, "halt", 1e-6)


@pytest.mark.parametrize("rules", [rule(action="rollback"), {"nan": {"metric": "*", "not_finite": True, "action": "halt"}}])
def test_what_is_to_be_rolled_back_or_is_no_number_is_not_saved(tmp_path, rules):
    value = float("nan") if "nan" in rules else 0.1
    done = Trainer(tmp_path, rules).fit({10: value})
    assert (done.saved, done.global_steps) == ([], 11)


def test_a_run_that_goes_on_does_not_halt_again_for_the_alarm_that_ended_it(tmp_path):
    Trainer(tmp_path, rule(action="halt")).fit({4: 0.1})
    again = Trainer(tmp_path, rule(action="halt"))
    again.global_steps = 5
    assert again.fit({5: 0.1, 6: 0.1, 20: 0.1}).global_steps == 21


def test_a_checkpoint_that_is_saved_while_an_alarm_stands_is_marked_unless_it_only_warns(tmp_path):
    from research_rl.verl_plugin.health import mark_checkpoint

    for action, marked in (("warn", False), ("save", True)):
        trainer = Trainer(tmp_path / action, rule(action=action), steps=1)
        mark_checkpoint(trainer, tmp_path / action)  # before its first step
        trainer.fit({1: 0.1})
        mark_checkpoint(trainer, tmp_path / action)
        assert (tmp_path / action / "unhealthy.json").is_file() == marked


def test_a_rule_that_rolls_back_needs_checkpoints_to_go_back_to(tmp_path):
    from research_rl.errors import ConfigError
    from research_rl.training.health import Health
    from research_rl.verl_plugin.health import check_health

    health = Health.from_mapping({"rules": rule(action="rollback")})
    good = {"save_freq": 5, "resume_mode": "auto", "default_local_dir": "run/checkpoints"}
    check_health(OmegaConf.create({"trainer": good}), health)
    for wrong in ({"save_freq": -1}, {"resume_mode": "disable"}, {"default_local_dir": "run/saved"}):
        with pytest.raises(ConfigError, match=r"mine\.action=rollback needs trainer\.save_freq > 0"):
            check_health(OmegaConf.create({"trainer": {**good, **wrong}}), health)
        check_health(OmegaConf.create({"trainer": {**good, **wrong}}), Health.from_mapping({"rules": rule()}))


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "health_figures.jsonl").mkdir()
    assert Trainer(tmp_path, {}, steps=2).fit({}).global_steps == 3
    assert "no line for step 2" in capsys.readouterr().err


def test_after_a_rollback_the_schedule_goes_on_at_the_configurations_learning_rate(monkeypatch):
    from transformers import get_cosine_schedule_with_warmup
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    from research_rl.verl_plugin import learning_rate

    assert hasattr(FSDPEngine.load_checkpoint, "__wrapped__")  # by the entry point

    def made(lr):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=lr)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 2, 10)

    def steps(optimizer, schedule, count):
        found = []
        for _ in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    before = made(1e-3)
    steps(*before, 4)
    saved = before[0].state_dict(), before[1].state_dict()
    whole = steps(*before, 5)
    for flag, factor in (("0", 1.0), ("1", 0.5)):
        monkeypatch.setenv("RESEARCH_RL_LR_FROM_CONFIG", flag)
        optimizer, schedule = made(5e-4)
        engine = SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule, optimizer_config=SimpleNamespace(lr=5e-4))

        def load():
            for one, state in zip((optimizer, schedule), saved, strict=True):  # noqa: B023
                one.load_state_dict(state)

        learning_rate._load_checkpoint(load, engine, (), {})
        assert schedule.get_last_lr() == [pytest.approx(whole[0] * factor)]
        assert steps(optimizer, schedule, 5) == pytest.approx([lr * factor for lr in whole])
