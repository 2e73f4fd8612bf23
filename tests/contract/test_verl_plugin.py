"""verl's plugin points: what verl passes to the agent loop, and what it expects back."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError, RetrievalError
from research_rl.training.trajectory_log import read
from research_rl.types import Passage
from tests.models import model_like, tokenizer_like
from tests.servers import app_in_thread

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def loop_module():
    return pytest.importorskip("research_rl.verl_plugin.agent_loop")


def config(tmp_path, **section):
    """The part of a verl configuration that the agent loop reads."""
    return OmegaConf.create(
        {
            "research_rl": {
                "method": "research_rl.methods.research.ReSearch",
                "retrieval": {"url": "http://127.0.0.1:1", "deadline_s": 0.5},
                "trajectory_dir": str(tmp_path / "trajectories"),
                **section,
            },
            "actor_rollout_ref": {
                "model": {"path": str(WEIGHTS)},
                "rollout": {
                    "prompt_length": 400, "response_length": 200, "temperature": 1.0, "top_p": 1.0, "top_k": -1,
                    "agent": {"agent_loop_manager_class": "research_rl.verl_plugin.agent_loop.SearchAgentLoopManager"},
                },
            },
            "data": {"max_response_length": 200},
        }
    )  # fmt: skip


class Server:
    """Stands in for verl's LLM server client: returns scripted texts as ids."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.parameters = tokenizer, list(texts), []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        self.parameters.append(sampling_params)
        text = self.texts.pop(0)
        ids = self.tokenizer.encode(text) if text else [self.tokenizer.eos_token_id]
        return SimpleNamespace(
            token_ids=ids, log_probs=[-1.0] * len(ids), extra_fields={"min_global_steps": 3, "max_global_steps": 3}
        )


ROW = {
    "raw_prompt": [{"role": "user", "content": "Who?"}], "extra_info": {"question": "Who?", "split": "train"},
    "reward_model": {"ground_truth": ["Orla Venn"]}, "data_source": "world", "global_steps": 4, "uid": "u", "index": 0, "session_id": 0,
}  # fmt: skip


def make(loop_module, tokenizer, configuration, server):
    """Make the loop with the keyword arguments that verl 0.9.1 passes."""
    wrap = lambda value: SimpleNamespace(config=value)  # noqa: E731
    return loop_module.SearchAgentLoop(
        trainer_config=wrap(configuration), server_manager=server, tokenizer=tokenizer, processor=None, hf_model_type="qwen2",
        dataset_cls=None, data_config=wrap(configuration.data), tools=SimpleNamespace(tools=[]),
    )  # fmt: skip


def test_a_trajectory_reaches_verl_scored_masked_and_logged(loop_module, tokenizer, tmp_path, monkeypatch):
    async def search(self, queries, top_k):
        return [[Passage("1", "Orla Venn")] for _ in queries]

    monkeypatch.setattr(loop_module.RetrievalClient, "search", search)
    texts = ["<think>t</think><search> who</search>", "<think>t</think><answer>\\boxed{Orla Venn}</answer><|endoftext|>"]
    server = Server(tokenizer, texts)

    async def go():
        return await make(loop_module, tokenizer, config(tmp_path), server).run({"temperature": 1.0}, **ROW)

    output = asyncio.run(go())
    assert output.reward_score == 1.0
    assert output.extra_fields["min_global_steps"] == 3
    assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)
    sampled = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert sampled == [token for text in texts for token in tokenizer.encode(text)]
    first = server.parameters[0]
    assert first["stop"] == ["</search>"]
    assert first["include_stop_str_in_output"] is True
    assert first["max_tokens"] == 200
    rollout = output.extra_fields.pop("rollout")  # the worker scores and writes it once the whole group is there
    assert rollout.trajectory.searches == ["who"]
    assert (rollout.record["step"], rollout.record["split"], rollout.record["answer"]) == (4, "train", "Orla Venn")
    fields = output.as_dict()
    assert fields["rm_scores"].sum() == 1.0


def prompt_of(loop_module, folder, family, answer, section=None, data=None, begins=False):
    """Roll out one question with a model of a family; return verl's output and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_like(folder / "model", family, begins))
    configuration = config(folder, method_options={"template": "sys"}, **(section or {}))
    configuration.actor_rollout_ref.model.path = str(folder / "model")
    configuration.data = {**configuration.data, **(data or {})}

    async def go():
        return await make(loop_module, tokenizer, configuration, Server(tokenizer, [answer])).run({"temperature": 1.0}, **ROW)

    return asyncio.run(go()), tokenizer


def test_a_right_answer_scores_whichever_eos_of_the_model_ends_it(loop_module, tmp_path):
    output, _ = prompt_of(loop_module, tmp_path, "gemma", GOOD + "<end_of_turn>")
    assert output.reward_score == 1.0
    assert output.extra_fields["rollout"].trajectory.ended_with_eos


def test_prompts_get_verls_keywords_for_the_chat_template_and_our_bos(loop_module, tmp_path):
    data = {"apply_chat_template_kwargs": {"enable_thinking": False}}
    output, tokenizer = prompt_of(loop_module, tmp_path, "qwen3", GOOD, {"bos": True}, data)
    prompt = tokenizer.decode(output.prompt_ids)
    assert prompt.startswith("<bos><|im_start|>system")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_manifest_tells_how_prompts_became_tokens(tmp_path, monkeypatch):
    from research_rl.inference.protocol import choose_protocol
    from research_rl.verl_plugin import checkpoint

    monkeypatch.setattr(checkpoint, "indexes", lambda settings: {})
    configuration = config(tmp_path, bos=True)
    configuration.data.apply_chat_template_kwargs = {"enable_thinking": False}
    configuration.algorithm = {"adv_estimator": "grpo"}
    found = checkpoint.manifest(configuration, checkpoint.settings_of(configuration), 1)
    (tmp_path / "research_rl.json").write_text(json.dumps(found))
    protocol = choose_protocol(None, {}, tmp_path, {})
    assert (protocol.bos, protocol.chat_template_kwargs) == (True, {"enable_thinking": False})


def test_a_dead_service_fails_the_trajectory_and_then_ends_the_run(loop_module, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module._Fatal, "error", None)
    server = Server(tokenizer, ["<search> who</search>"])

    async def go():
        return await make(loop_module, tokenizer, config(tmp_path), server).run({}, **ROW)

    with pytest.raises(RetrievalError, match=r"http://127\.0\.0\.1:1"):
        asyncio.run(go())
    worker = object.__new__(loop_module._SearchAgentLoopWorker)
    with pytest.raises(RetrievalError, match=r"http://127\.0\.0\.1:1"):
        asyncio.run(worker.generate_sequences(None))


def test_a_bug_or_bad_data_ends_the_run_instead_of_being_refilled_for_ever(loop_module, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module._Fatal, "error", None)
    configuration = config(tmp_path)
    configuration.actor_rollout_ref.rollout.prompt_length = 3
    with pytest.raises(DataError, match="max_prompt_length is 3"):
        asyncio.run(make_and_run(loop_module, tokenizer, configuration))
    with pytest.raises(DataError, match="max_prompt_length is 3"):
        asyncio.run(object.__new__(loop_module._SearchAgentLoopWorker).generate_sequences(None))


def test_a_bos_that_the_model_does_not_have_ends_the_run(loop_module, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module._Fatal, "error", None)
    with pytest.raises(ConfigError, match="no BOS token"):
        asyncio.run(make_and_run(loop_module, AutoTokenizer.from_pretrained(WEIGHTS), config(tmp_path, bos=True)))
    with pytest.raises(ConfigError, match="no BOS token"):
        asyncio.run(object.__new__(loop_module._SearchAgentLoopWorker).generate_sequences(None))


async def make_and_run(loop_module, tokenizer, configuration):
    return await make(loop_module, tokenizer, configuration, Server(tokenizer, [])).run({}, **ROW)


@pytest.mark.parametrize("change", [{"extra_info": {}, "raw_prompt": []}, {"reward_model": {}}])
def test_a_row_without_question_or_answers_is_told(loop_module, change):
    with pytest.raises(DataError, match="ground_truth"):
        loop_module.question_of({**ROW, **change})


@pytest.mark.parametrize(
    ("section", "rollout", "says"),
    [
        ({"method": "research_rl.methods.nothing.X"}, {}, "cannot be imported"),
        ({"wrong_key": 1}, {}, "unknown keys"),
        ({"top_k": 0}, {}, "top_k must be"),
        ({"bos": "yes"}, {}, "bos must be true, false or null"),
        ({"retrieval": {"url": "nowhere"}}, {}, "http://"),
        ({"retrieval": {"url": "http://x", "tries": 1}}, {}, "tries"),
        ({}, {"top_p": 0.9}, "sample from the policy itself"),
        ({}, {"temperature": 0.0}, "sample from the policy itself"),
        ({}, {"agent": {"agent_loop_manager_class": None}}, "agent_loop_manager_class"),
    ],
)
def test_a_wrong_recipe_fails_before_anything_is_started(tmp_path, section, rollout, says):
    from research_rl.verl_plugin.checks import check_config

    configuration = OmegaConf.merge(config(tmp_path, **section), {"actor_rollout_ref": {"rollout": rollout}})
    with pytest.raises(ConfigError, match=says):
        check_config(configuration)


def test_a_recipe_whose_service_is_not_there_says_so_before_anything_is_started(tmp_path):
    from research_rl.verl_plugin.checks import check_config

    with pytest.raises(RetrievalError, match=r"no retrieval service at http://127\.0\.0\.1:1"):
        check_config(config(tmp_path))


def test_a_prompt_file_named_from_where_the_run_starts_reaches_a_worker_that_runs_elsewhere(tmp_path, monkeypatch):
    from fastapi import FastAPI

    from research_rl.verl_plugin.checks import check_config

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "p.txt").write_text("Costs $$5. ${question}: $question\n")
    monkeypatch.chdir(tmp_path / "here")
    with app_in_thread(FastAPI()) as url:
        configuration = config(tmp_path, method_options={"prompt_file": "p.txt"}, retrieval={"url": url})
        check_config(configuration)
    OmegaConf.resolve(configuration)  # as verl does once more in its own worker
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(configuration))
    code = (
        "import pickle, sys; from research_rl.verl_plugin.checks import settings_of; "
        "print(settings_of(pickle.load(open('config.pickle', 'rb'))).load().prompt('Who?'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "Costs $5. Who?: Who?\n", done.stderr[-2000:]


def test_a_verl_configuration_without_our_section_is_left_alone():
    from research_rl.verl_plugin.checks import check_config

    check_config(OmegaConf.create({}))


def test_the_starting_model_and_its_tokenizer_have_one_vocabulary(tokenizer):
    assert json.loads((WEIGHTS / "config.json").read_text())["vocab_size"] == len(tokenizer)


def test_verls_worker_class_can_still_be_subclassed_under_its_ray_decorator(loop_module):
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    assert issubclass(loop_module._SearchAgentLoopWorker, AgentLoopWorker)


GEMMA = HFCodec(tokenizer_like("gemma"), tokenizer_like("gemma").convert_tokens_to_ids(["<end_of_turn>"]))
GOOD = "<think>t</think><answer>\\boxed{Orla Venn}</answer>"


def finished(loop_module, session, method, text=GOOD, answer="Orla Venn"):
    """What the loop hands to the worker for a session."""
    trajectory = method.read(text, "Who?")
    record = {"step": 1, "split": "train", "session": session}
    reward = method.reward(trajectory, [answer])
    return loop_module._Rollout(trajectory, [answer], reward, record, complete=None, codec=GEMMA)


@pytest.fixture
def run_group(loop_module, tmp_path, monkeypatch):
    """Run one question of several sessions through the worker; return what verl was told and given."""
    from verl.trainer.ppo.v1 import agent_loop_tq

    def run(texts, section=None, failing=None):
        statuses, put = [], {}

        async def async_kv_put(key, partition_id, tag):
            statuses.append(tag["status"])

        async def run_loop(self, sampling_params, trajectory, *, session_id, **kwargs):
            await asyncio.sleep(0.01 * session_id)
            if session_id == failing:
                raise RetrievalError("down")
            rollout = finished(loop_module, session_id, self._settings.load(), texts[session_id])
            output = SimpleNamespace(extra_fields={"rollout": rollout}, reward_score=None)
            await self._agent_loop_postprocess(output, False, session_id=session_id, **kwargs)

        async def postprocess(self, output, validate, **kwargs):
            assert "rollout" not in output.extra_fields
            put[kwargs["session_id"]] = output

        monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", async_kv_put)
        monkeypatch.setattr(loop_module._Worker, "_run_agent_loop", run_loop)
        monkeypatch.setattr(loop_module._Worker, "_agent_loop_postprocess", postprocess)
        worker = object.__new__(loop_module._SearchAgentLoopWorker)
        worker._groups = {}
        worker.config = config(tmp_path, attempt=1.5, **(section or {}))
        worker._settings = loop_module.settings_of(worker.config)
        worker.config.actor_rollout_ref.rollout.n = len(texts)
        worker.config.actor_rollout_ref.rollout.val_kwargs = {"n": 1}
        loop_module.log_for.cache_clear()
        asyncio.run(worker._run_prompt({"uid": "u"}, {}, trajectory={"validate": False}))
        assert worker._groups == {}
        return statuses, put

    return run


@pytest.mark.parametrize(
    ("failing", "written", "status"), [(None, [0, 1, 2, 3], "finished"), (2, [], "failure"), (0, [], "failure")]
)
def test_the_rollouts_of_a_question_enter_the_batch_together_or_not_at_all(run_group, tmp_path, failing, written, status):
    statuses, put = run_group([GOOD] * 4, failing=failing)
    assert statuses == ["running", status]
    assert sorted(put) == written
    assert sorted(record["session"] for record in read(tmp_path / "trajectories")) == written


SEARCH = "I wonder.<external>q</external>\n<document>\n(1)x\n</document>\n It is her.\\boxed{Orla Venn}"


def test_the_group_reward_reaches_the_batch_and_the_log(run_group, tmp_path):
    section = {"method": "r1_searcher_pp"}
    _, put = run_group(["\\boxed{Orla Venn}", SEARCH, "\\boxed{nobody}"], section)
    assert [put[session].reward_score for session in range(3)] == [1.5, 1.0, 0.0]
    assert put[0].extra_fields["reward_extra_info"]["reward/group"] == 0.5
    scores = {record["session"]: record["metrics"]["score"] for record in read(tmp_path / "trajectories")}
    assert scores == {0: 1.5, 1: 1.0, 2: 0.0}


def test_a_method_that_fails_on_a_group_ends_the_run_instead_of_hanging_it(run_group, loop_module, monkeypatch):
    from research_rl.methods.research import ReSearch

    def regroup(self, trajectories, rewards):
        raise KeyError("a bug")

    monkeypatch.setattr(loop_module._Fatal, "error", None)
    monkeypatch.setattr(ReSearch, "regroup", regroup)
    statuses, put = run_group([GOOD] * 3)
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(object.__new__(loop_module._SearchAgentLoopWorker).generate_sequences(None))


@pytest.mark.parametrize(("template", "end"), [("sys", "<end_of_turn>"), ("base", "<|endoftext|>")])
def test_a_correct_rollout_that_searched_carries_a_path_without_search_to_the_actor(run_group, template, end):
    section = {"method": "r1_searcher_pp", "memorisation": {"mu": 0.1, "rewriter": "extract"}}
    section["method_options"] = {"template": template}
    _, put = run_group(["\\boxed{Orla Venn}", SEARCH, SEARCH.replace("Orla", "Nora")], section)
    memories = [put[session].extra_fields["memory"] for session in range(3)]
    path = "<internal>I wonder. It is her.</internal>\\boxed{Orla Venn}"
    assert memories == [None, {"prompt_ids": [], "response_ids": [*GEMMA.encode(path), *GEMMA.encode(end)], "mu": 0.1}, None]


def test_a_rewriter_that_fails_ends_the_run_and_breaks_no_group(run_group, loop_module, monkeypatch):
    monkeypatch.setattr(loop_module._Fatal, "error", None)
    section = {"method": "r1_searcher_pp", "memorisation": {"mu": 0.1, "rewriter": "policy"}}
    statuses, put = run_group([SEARCH, SEARCH], section)  # the policy of these rollouts cannot be asked
    assert statuses == ["running", "finished"]
    assert [output.extra_fields["memory"] for output in put.values()] == [None, None]
    with pytest.raises(TypeError):
        asyncio.run(object.__new__(loop_module._SearchAgentLoopWorker).generate_sequences(None))


def test_without_mu_nothing_is_rewritten(run_group):
    _, put = run_group([SEARCH, SEARCH], {"method": "r1_searcher_pp"})
    assert all("memory" not in output.extra_fields for output in put.values())
