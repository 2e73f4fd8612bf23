"""A judge inside verl's run: recipes that name one, the reward of a rollout, what is counted, told and written, and the doctor."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from research_rl.errors import JudgeError
from research_rl.judge_client import Judgement
from research_rl.training.settings import Settings
from research_rl.training.trajectory_log import read
from tests.contract import test_verl_plugin as plugin
from tests.contract.test_recipes import IDS, ROOT, TRAINERS, composed
from tests.servers import json_server

loop_module, worker_module, tokenizer, run_group = plugin.loop_module, plugin.worker_module, plugin.tokenizer, plugin.run_group
pytestmark = pytest.mark.slow
NEAR = "<think>t</think><answer>\\boxed{Orla of Venn}</answer>"


@pytest.fixture
def judge():
    """A chat server that finds answers with `right` in them right; yields its section, what it was asked, and how it answers."""
    asked, state = [], {"right": "Orla", "status": 200}

    def answer(path, body):
        asked.append(body["messages"][0]["content"])
        said = str(state["right"] in asked[-1].split("predicted answer: ")[1])
        return state["status"], {"choices": [{"message": {"content": said}}]} if state["status"] == 200 else {"error": "no"}

    with json_server(answer) as url:
        yield {"url": f"{url}/v1", "model": "m", "deadline_s": 0.3}, asked, state


@pytest.mark.parametrize("recipe", TRAINERS, ids=IDS)
def test_every_recipe_takes_a_judge(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = ["url=https://host/v1", "model=m", "cache=/tmp/judge.jsonl", "fallback=stop", "prompt_file=judge_research"]
    more = "+research_rl.judge.body.chat_template_kwargs.enable_thinking=false"
    config = composed(recipe, [*(f"research_rl.judge.{one}" for one in given), more])
    section: Any = OmegaConf.to_container(config.research_rl, resolve=True)
    settings = Settings.from_mapping(section)
    judging = settings.judging()
    assert judging is not None
    assert (judging.cache, judging.fallback, judging.max_fallback_share) == ("/tmp/judge.jsonl", "stop", 0.1)
    assert judging.body == {"chat_template_kwargs": {"enable_thinking": False}}
    assert "give your reasons" in judging.template().template
    assert composed(recipe).research_rl.judge.url is None


def rolled_out(loop_module, tokenizer, tmp_path, text, **section):
    server = plugin.Server(tokenizer, [f"{text}<|endoftext|>"])
    loop = plugin.make(loop_module, tokenizer, plugin.config(tmp_path, **section), server)
    return asyncio.run(loop.run({"temperature": 1.0}, plugin.ROW))


@pytest.mark.parametrize(("right", "reward"), [("Orla", 1.0), ("Nora", 0.1)])
def test_the_verdict_is_the_answers_part_of_a_rollouts_reward(loop_module, tokenizer, tmp_path, judge, right, reward):
    section, asked, state = judge
    by_rule = rolled_out(loop_module, tokenizer, tmp_path, NEAR).reward.score
    assert by_rule == pytest.approx(0.8)
    state["right"] = right
    rollout = rolled_out(loop_module, tokenizer, tmp_path, NEAR, judge=section)
    assert rollout.reward.score == pytest.approx(reward)
    assert rollout.reward.components == {"f1": pytest.approx(0.8), "format": 1.0, "judge": float(right == "Orla")}
    assert rollout.record["judge_said"] == str(right == "Orla")
    assert 'question: "Who?"' in asked[0]


def test_without_a_verdict_the_methods_own_metric_counts(loop_module, tokenizer, tmp_path, judge):
    section, _, state = judge
    state["status"] = 503
    rollout = rolled_out(loop_module, tokenizer, tmp_path, NEAR, judge=section)
    assert rollout.reward.score == pytest.approx(0.8)
    assert "judge" not in rollout.reward.components
    assert "HTTP 503" in rollout.record["judge_said"]


@pytest.mark.parametrize(("status", "fallback"), [(401, "rule"), (400, "stop")])
def test_a_judge_that_refuses_ends_the_run(loop_module, tokenizer, tmp_path, judge, run_group, status, fallback):
    section, _, state = judge
    state["status"] = status
    with pytest.raises(JudgeError, match=f"HTTP {status}"):
        rolled_out(loop_module, tokenizer, tmp_path, NEAR, judge={**section, "fallback": fallback})
    run_group([NEAR] * 2, failing=0, loop_error=JudgeError)
    with pytest.raises(JudgeError):
        plugin.ends_the_run(run_group.worker)


@pytest.mark.parametrize("validate", [False, True])
def test_what_the_judge_did_is_logged_and_what_it_left_open_is_counted(loop_module, run_group, monkeypatch, tmp_path, validate):
    said = {
        0: Judgement(True, "True", asked=True, seconds=2.0),
        1: Judgement(True, "True", cached=True),
        2: Judgement(None, "HTTP 503", asked=True),
    }
    finished = plugin.finished

    def judged(module, session, method, text):
        rollout = finished(module, session, method, text)
        rollout.judgement = said[session]
        return rollout

    monkeypatch.setattr(plugin, "finished", judged)
    _, put = run_group([NEAR] * 3, validate=validate)
    metrics = [put[session]["extra_fields"]["reward_extra_info"] for session in range(3)]
    assert [[row[f"judge/{name}"] for name in ("asked", "cached", "fallback", "seconds")] for row in metrics] == [
        [1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0],
    ]  # fmt: skip
    assert all({"em", "f1"} <= set(row) for row in metrics)
    records = sorted(read(tmp_path / "trajectories"), key=lambda record: record["session"])
    assert [record["metrics"]["judge/fallback"] for record in records] == [0.0, 0.0, 1.0]
    found = asyncio.run(run_group.worker.unjudged(validate))
    assert (found.rollouts, found.fallbacks, found.failure) == (3, 1, "HTTP 503")
    assert asyncio.run(run_group.worker.unjudged(validate)).rollouts == 0


@pytest.mark.parametrize(("fallbacks", "share", "told"), [
    (0, 0.1, ""), (6, 0.1, "told"), (7, 0.1, "raised"), (1, 0.001, "told"), (1, 0, "raised"), (2, 0.001, "raised"),
])  # fmt: skip
@pytest.mark.parametrize("validate", [False, True])
def test_fallbacks_are_told_and_too_many_end_the_run(capsys, validate, fallbacks, share, told):
    from research_rl.verl_plugin.judging import Unjudged, tell_unjudged, together

    workers = [Unjudged(40, fallbacks, "HTTP 503" if fallbacks else ""), Unjudged(24, 0)]
    manager = SimpleNamespace(unjudged=lambda asked: together(workers) if asked is validate else None)
    config = {"research_rl": {"judge": {"url": "http://host/v1", "max_fallback_share": share}}}
    trainer = SimpleNamespace(config=config, agent_loop_manager=manager, global_steps=3)
    says = f"step 3: {fallbacks} of 64 rollouts got no verdict"
    if told == "raised":
        with pytest.raises(JudgeError, match=rf"{says}.*max_fallback_share={share:g}.*HTTP 503"):
            tell_unjudged(trainer, validate)
    else:
        tell_unjudged(trainer, validate)
        assert (says in capsys.readouterr().err) is (told == "told")


def test_without_a_judge_nobody_is_asked_what_it_left_open():
    from research_rl.verl_plugin.judging import tell_unjudged

    for section in ({}, {"judge": {"url": None}}):
        tell_unjudged(SimpleNamespace(config={"research_rl": section}, global_steps=1), validate=False)


def test_step_and_validation_tell_what_the_judge_left_open(monkeypatch):
    import transfer_queue
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from research_rl.verl_plugin import trainer as hooks

    asked = []
    monkeypatch.setattr(hooks, "tell_unjudged", lambda trainer, validate: asked.append(validate))
    monkeypatch.setattr(hooks, "monitor_of", lambda trainer: SimpleNamespace(judge=lambda metrics: None))
    fields = list_of_dict_to_tensordict([{"extra_fields": {"reward_extra_info": {"judge/asked": 1.0}}}])
    monkeypatch.setattr(transfer_queue, "kv_batch_get", lambda keys, partition_id, select_fields: fields)
    manager = SimpleNamespace(lost_questions=lambda validate=True: 0, fail_if_failed=lambda: None)
    trainer = SimpleNamespace(config={"research_rl": {}}, agent_loop_manager=manager, global_steps=1)
    batch, metrics = SimpleNamespace(keys=["a"], tags=[{}], partition_id="train"), {}
    hooks._step(lambda *args: batch, trainer, (metrics, {}), {})
    assert metrics["training/search/judge/asked"] == 1.0
    hooks._validate(lambda: {}, trainer, (), {})
    assert asked == [False, True]


def test_the_manifest_names_the_judge_and_its_prompt_and_nothing_of_how_it_is_reached(tmp_path, monkeypatch, judge):
    from research_rl.verl_plugin import manifest
    from research_rl.verl_plugin.config import settings_of

    section, _, _ = judge
    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setattr(manifest, "indexes", lambda settings: {})

    def written(**judge):
        configuration = plugin.config(tmp_path, judge=judge)
        configuration.algorithm = {"adv_estimator": "grpo"}
        configuration.trainer = {"default_local_dir": str(tmp_path / "checkpoints")}
        return manifest.manifest(configuration, settings_of(configuration), 1)

    first, second = (written(**section, api_key_env="MY_KEY", **more) for more in ({}, {"prompt_file": "judge_research"}))
    assert set(first["judge"]) == {"model", "prompt_sha256", "replaces", "ask_when"}
    assert first["judge"]["prompt_sha256"] != second["judge"]["prompt_sha256"]
    assert not [hidden for hidden in ("secret", "MY_KEY", section["url"]) if hidden in json.dumps(first)]
    assert "judge" not in written()


def looked_at(tmp_path, quick=True, **section):
    from research_rl.verl_plugin.doctor.judge import judge as check
    from research_rl.verl_plugin.doctor.setup import Setup

    configuration = plugin.config(tmp_path, **section)
    configuration.data.train_batch_size, configuration.actor_rollout_ref.rollout.n = 8, 4
    (finding,) = check.findings(Setup(configuration, quick))
    return finding


def test_the_doctor_tries_the_judge_out_and_tells_what_a_step_asks(tmp_path, judge):
    section, asked, state = judge
    state["right"] = "Paris"
    finding = looked_at(tmp_path, judge=section)
    assert (finding.level, len(asked)) == ("ok", 2)
    assert "at most 32 verdicts a step" in finding.what
    assert looked_at(tmp_path).what.startswith("none")


@pytest.mark.parametrize(("wrong", "more", "says"), [
    ({"right": "predicts nothing"}, {}, "'the city of Paris' wrong"), ({"right": '"'}, {}, "'Berlin' right"),
    ({"status": 401}, {}, "Is the key right"), ({"status": 404}, {}, "Does the URL end in /v1"), ({"status": 503}, {}, "HTTP 503"),
    ({}, {"api_key_env": "NO_SUCH_KEY"}, "this variable is not set"),
])  # fmt: skip
def test_the_doctor_refuses_a_judge_that_cannot_be_asked_or_judges_wrongly(tmp_path, judge, wrong, more, says):
    section, _, state = judge
    state.update(wrong)
    finding = looked_at(tmp_path, judge={**section, **more})
    assert finding.level == "error"
    assert says in str(finding)


def test_the_doctor_says_where_there_is_nothing_to_judge(tmp_path, judge):
    options = {"method": "r1_searcher", "method_options": {"preset": "stage1_paper"}}
    finding = looked_at(tmp_path, judge=judge[0], **options)
    assert (finding.level, judge[1]) == ("warning", [])
    assert "does not depend on the answer" in finding.what
