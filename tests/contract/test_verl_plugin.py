"""verl's plugin points: what verl passes to the agent loop, and what it expects back."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorData
from transformers import AutoTokenizer

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError, QueryFailedError, RetrievalError, WrongServiceError
from research_rl.training.trajectory_log import read
from research_rl.types import OpenedPage, Passage
from tests.models import model_like, tokenizer_like

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def loop_module():
    return pytest.importorskip("research_rl.verl_plugin.agent_loop")


@pytest.fixture(scope="module")
def worker_module():
    return pytest.importorskip("research_rl.verl_plugin.agent_worker")


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
                    "name": "vllm", "prompt_length": 400, "response_length": 200, "temperature": 1.0, "top_p": 1.0, "top_k": -1,
                    "calculate_log_probs": True,
                    "agent": {"agent_loop_manager_class": "research_rl.verl_plugin.agent_manager.SearchAgentLoopManager"},
                },
            },
            "data": {"max_response_length": 200},
            "trainer": {"v1": {"trainer_mode": "sync"}},
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
    """Make the loop as the worker does."""
    return loop_module.SearchAgentLoop(configuration, server, tokenizer)


def test_a_trajectory_reaches_verl_scored_masked_and_logged(loop_module, tokenizer, tmp_path, monkeypatch):
    async def search(self, queries, top_k):
        return [[Passage("1", "Orla Venn")] for _ in queries]

    monkeypatch.setattr(loop_module.RetrievalClient, "search", search)
    texts = ["<think>t</think><search> who</search>", "<think>t</think><answer>\\boxed{Orla Venn}</answer><|endoftext|>"]
    server = Server(tokenizer, texts)

    async def go():
        return await make(loop_module, tokenizer, config(tmp_path), server).run({"temperature": 1.0}, ROW)

    rollout = asyncio.run(go())  # the worker scores and writes it once the whole group is there
    output = rollout.output
    assert rollout.reward.score == 1.0
    assert output.reward_score is None
    assert output.extra_fields["min_global_steps"] == 3
    assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)
    sampled = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert sampled == [token for text in texts for token in tokenizer.encode(text)]
    first = server.parameters[0]
    assert first["stop"] == ["</search>"]
    assert first["include_stop_str_in_output"] is True
    assert first["skip_special_tokens"] is False  # a stop string that is a special token is looked for in the text
    assert first["max_tokens"] == 200
    assert rollout.trajectory.searches == ["who"]
    assert (rollout.record["step"], rollout.record["split"], rollout.record["answer"]) == (4, "train", "Orla Venn")


def test_where_updates_interrupt_requests_what_is_sampled_behind_an_unseen_stop_string_is_dropped(
    loop_module, tokenizer, tmp_path, monkeypatch
):
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    async def search(self, queries, top_k):
        return [[Passage("1", "Orla Venn")] for _ in queries]

    monkeypatch.setattr(loop_module.RetrievalClient, "search", search)
    # the stop string stands on both sides of an interruption, so vLLM has not seen it
    texts = [
        "<think>t</think><search> who</search><result>made up",
        "<think>t</think><answer>\\boxed{Orla Venn}</answer><|endoftext|>",
    ]
    server = Server(tokenizer, texts)
    asynchronous = OmegaConf.merge(config(tmp_path), {"trainer": {"v1": {"trainer_mode": "colocate_async"}}})

    async def go():
        return await make(loop_module, tokenizer, asynchronous, server).run({"temperature": 1.0}, ROW)

    rollout = asyncio.run(go())
    output = rollout.output
    sampled = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert tokenizer.decode(sampled) == "<think>t</think><search> who</search>" + texts[1]
    assert rollout.trajectory.searches == ["who"]
    # verl waits for each request's first message before it interrupts: they must speak before they end
    made = SamplingParams(**server.parameters[0])
    assert made.output_kind is not RequestOutputKind.FINAL_ONLY


def test_a_trajectory_of_tool_calls_reaches_verl_with_its_frames_masked(loop_module, tokenizer, tmp_path, monkeypatch):
    asked = []

    async def search(self, queries, top_k):
        asked.append(queries)
        return [[Passage("7", "Orla Venn") for _ in queries]]

    async def open_(self, passage_id, page=None):
        asked.append((passage_id, page))
        return OpenedPage([Passage("8", "She was born.")], 2, 2)

    monkeypatch.setattr(loop_module.RetrievalClient, "search", search)
    monkeypatch.setattr(loop_module.RetrievalClient, "open", open_)
    model_like(tmp_path / "model", "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = (ROOT / "research_rl" / "tools" / "chatml.jinja").read_text()
    calls = [
        '<tool_call>\n{"name": "search", "arguments": {"query": "who"}}\n</tool_call>',
        '<tool_call>\n{"name": "open", "arguments": {"id": "7", "page": 2}}\n</tool_call>',
    ]
    texts = [f"{text}<|im_end|>" for text in (*calls, "\\boxed{Orla Venn}")]
    server = Server(tokenizer, texts)
    configuration = config(tmp_path, method="tool_calls", max_observation_tokens=60)
    configuration.actor_rollout_ref.model.path = str(tmp_path / "model")
    configuration.actor_rollout_ref.rollout.prompt_length, configuration.actor_rollout_ref.rollout.response_length = 900, 900
    configuration.data.max_prompt_length = configuration.data.max_response_length = 900

    async def go():
        return await make(loop_module, tokenizer, configuration, server).run({"temperature": 1.0}, ROW)

    rollout = asyncio.run(go())
    output = rollout.output
    assert rollout.reward.score == 1.0
    assert asked == [["who"], ("7", 2)]
    assert '"name": "search"' in tokenizer.decode(output.prompt_ids)
    assert server.parameters[0]["stop"] == []
    sampled = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert sampled == [token for text in texts for token in tokenizer.encode(text)]
    seen = tokenizer.decode([t for t, m in zip(output.response_ids, output.response_mask, strict=True) if not m])
    assert seen.count("<tool_response>") == seen.count("<|im_start|>assistant") == 2


def prompt_of(loop_module, folder, family, answer, section=None, data=None, begins=False):
    """Roll out one question with a model of a family; return the rollout and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_like(folder / "model", family, begins))
    configuration = config(folder, method_options={"template": "sys"}, **(section or {}))
    configuration.actor_rollout_ref.model.path = str(folder / "model")
    configuration.data = {**configuration.data, **(data or {})}

    async def go():
        return await make(loop_module, tokenizer, configuration, Server(tokenizer, [answer])).run({"temperature": 1.0}, ROW)

    return asyncio.run(go()), tokenizer


def test_a_right_answer_scores_whichever_eos_of_the_model_ends_it(loop_module, tmp_path):
    rollout, _ = prompt_of(loop_module, tmp_path, "gemma", GOOD + "<end_of_turn>")
    assert rollout.reward.score == 1.0
    assert rollout.trajectory.ended_with_eos


def test_prompts_get_verls_keywords_for_the_chat_template_and_our_bos(loop_module, tmp_path):
    data = {"apply_chat_template_kwargs": {"enable_thinking": False}}
    rollout, tokenizer = prompt_of(loop_module, tmp_path, "qwen3", GOOD, {"bos": True}, data)
    prompt = tokenizer.decode(rollout.output.prompt_ids)
    assert prompt.startswith("<bos><|im_start|>system")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_manifest_tells_how_prompts_became_tokens(tmp_path, monkeypatch):
    from research_rl.inference.protocol import choose_protocol
    from research_rl.verl_plugin import manifest
    from research_rl.verl_plugin.config import settings_of

    monkeypatch.setattr(manifest, "indexes", lambda settings: {})
    configuration = config(tmp_path, bos=True)
    configuration.data.apply_chat_template_kwargs = {"enable_thinking": False}
    configuration.algorithm = {"adv_estimator": "grpo"}
    configuration.trainer = {"default_local_dir": str(tmp_path / "checkpoints")}
    found = manifest.manifest(configuration, settings_of(configuration), 1)
    assert found["method_options"].keys().isdisjoint(found["method_defaults"])
    assert found["method_defaults"]["preset"] == "code"
    (tmp_path / "research_rl.json").write_text(json.dumps(found))
    protocol = choose_protocol(None, {}, tmp_path, {})
    assert (protocol.bos, protocol.chat_template_kwargs) == (True, {"enable_thinking": False})


def test_a_dead_service_fails_the_trajectory(loop_module, tokenizer, tmp_path):
    server = Server(tokenizer, ["<search> who</search>"])
    with pytest.raises(RetrievalError, match=r"http://127\.0\.0\.1:1"):
        asyncio.run(make(loop_module, tokenizer, config(tmp_path), server).run({}, ROW))


def test_a_prompt_that_is_too_long_is_told(loop_module, tokenizer, tmp_path):
    configuration = config(tmp_path)
    configuration.actor_rollout_ref.rollout.prompt_length = 3
    with pytest.raises(DataError, match="max_prompt_length is 3"):
        asyncio.run(make(loop_module, tokenizer, configuration, Server(tokenizer, [])).run({}, ROW))


def test_a_bos_that_the_model_does_not_have_is_told(loop_module, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    with pytest.raises(ConfigError, match="no BOS token"):
        asyncio.run(make(loop_module, tokenizer, config(tmp_path, bos=True), Server(tokenizer, [])).run({}, ROW))


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


def test_a_verl_configuration_without_our_section_is_left_alone():
    from research_rl.verl_plugin.checks import check_config

    check_config(OmegaConf.create({}))


def test_the_starting_model_and_its_tokenizer_have_one_vocabulary(tokenizer):
    assert json.loads((WEIGHTS / "config.json").read_text())["vocab_size"] == len(tokenizer)


GEMMA = HFCodec(tokenizer_like("gemma"), tokenizer_like("gemma").convert_tokens_to_ids(["<end_of_turn>"]))
GOOD = "<think>t</think><answer>\\boxed{Orla Venn}</answer>"


def finished(loop_module, session, method, text=GOOD, answer="Orla Venn"):
    """What the loop hands to the worker for a session."""
    trajectory = method.read(text, "Who?")
    record = {"step": 1, "split": "train", "session": session}
    reward = method.reward(trajectory, [answer])
    output = loop_module.AgentLoopOutput(
        prompt_ids=[5, 6], response_ids=[7, 8, 9, *[4] * session], response_mask=[1, 0, 1, *[1] * session], num_turns=2,
        response_logprobs=[-1.0, 0.0, -2.0, *[-0.5] * session],
        metrics=loop_module.AgentLoopMetrics(), extra_fields={"min_global_steps": 3, "max_global_steps": 4},
    )  # fmt: skip
    return loop_module.FinishedRollout(output, trajectory, [answer], reward, record, complete=None, codec=GEMMA)


class Queue:
    """Stands in for verl's TransferQueue: what it was told and given."""

    def __init__(self, put_fails=False, partitions=()):
        self.statuses, self.put, self.tags, self.partitions, self._put_fails = [], {}, {}, set(partitions), put_fails

    def init(self):
        pass

    async def async_kv_put(self, key, partition_id, tag):
        self.partitions.add(partition_id)
        self.statuses.append(tag["status"])

    async def async_kv_clear(self, keys, partition_id):
        assert self.partitions == {partition_id}
        for key in keys:
            del self.put[key]

    async def async_kv_batch_put(self, keys, fields, tags, partition_id):
        assert self.partitions == {partition_id}
        if self._put_fails:  # it knows the keys already, as verl's does then
            self.put |= dict.fromkeys(keys)
            raise OSError("the queue is gone")
        for number, key in enumerate(keys):
            self.put[key] = {
                name: value.data if isinstance(value, NonTensorData) else value for name, value in fields[number].items()
            }
            self.tags[key] = tags[number]


@pytest.fixture
def run_group(loop_module, worker_module, tmp_path, monkeypatch):
    """Run one question of several sessions through the worker; return what verl's queue was told and given, by session."""
    from verl.utils import tensordict_utils as tu

    from research_rl.verl_plugin import rollout_queue

    def run(texts, section=None, failing=None, loop_error=None, put_fails=False, validate=False, made=None, row=None):
        queue = Queue(put_fails)
        worker = None

        class Loop:
            async def run(self, parameters, row):
                session, Loop.begun = Loop.begun, Loop.begun + 1
                await asyncio.sleep(0.01 * session)
                if session in (failing if isinstance(failing, tuple) else (failing,)):
                    raise (loop_error or RetrievalError)("down")
                return made or finished(loop_module, session, worker._settings.load(), texts[session])

            begun = 0

        async def go():
            await worker.generate_sequences(tu.get_tensordict({"uid": ["u"]}, {"global_steps": 4, "validate": validate}))
            await asyncio.gather(*worker._tasks)

        monkeypatch.setattr(rollout_queue, "tq", queue)
        monkeypatch.setattr(worker_module, "tq", queue)
        monkeypatch.setattr(worker_module, "omega_conf_to_dataclass", lambda section: SimpleNamespace(processor=None))
        worker = worker_module.SearchAgentLoopWorker(config(tmp_path, attempt=1.5, **(section or {})), None)
        worker.__dict__["_loop"] = Loop()
        worker.config.actor_rollout_ref.rollout.n = len(texts)
        worker.config.actor_rollout_ref.rollout.val_kwargs = {"n": len(texts), "temperature": 0.0, "top_p": 1.0, "top_k": -1}
        worker_module.log_for.cache_clear()
        asyncio.run(go())
        run.worker, run.queue = worker, queue
        return queue.statuses, {int(key.split("_")[1]): fields for key, fields in queue.put.items()}

    return run


@pytest.mark.parametrize(
    ("failing", "written", "status"), [(None, [0, 1, 2, 3], "finished"), (2, [], "failure"), (0, [], "failure")]
)
def test_the_rollouts_of_a_question_enter_the_batch_together_or_not_at_all(run_group, tmp_path, failing, written, status):
    statuses, put = run_group([GOOD] * 4, failing=failing)
    assert statuses == ["running", status]
    assert sorted(put) == written
    assert sorted(record["session"] for record in read(tmp_path / "trajectories")) == written


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize("validate", [False, True])
def test_the_trainer_finds_what_verls_own_worker_would_have_put(loop_module, monkeypatch, validate, sees):
    """verl's worker is what the queue's format can be held against; a verl that changes it fails here."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
    from verl.trainer.ppo.v1 import agent_loop_tq

    from research_rl.methods.research import ReSearch
    from research_rl.verl_plugin import rollout_queue

    model = SimpleNamespace(config=Qwen2_5_VLConfig())
    processor = SimpleNamespace(get_rope_index=partial(Qwen2_5_VLModel.get_rope_index, model)) if sees else None
    theirs = object.__new__(agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class)
    theirs.__dict__ |= {"processor": processor, "distillation_enabled": False, "reward_loop_worker_handles": None}
    theirs._compute_multi_modal_inputs = lambda output, input_ids: {"mm_token_type_ids": 0} if sees else {}  # without images
    row = {key: value for key, value in ROW.items() if key != "session_id"}

    def outputs():
        for session in range(2):
            output = finished(loop_module, session, ReSearch()).output
            output.reward_score = session / 2
            output.extra_fields["reward_extra_info"] = {"em": 1.0}
            yield output

    async def put():
        for session, output in enumerate(outputs()):
            await theirs._agent_loop_postprocess(output, validate, **row, session_id=session)

    queues = []
    for module, fill in (
        (agent_loop_tq, put),
        (rollout_queue, lambda: rollout_queue.put_group(row, list(outputs()), validate, processor)),
    ):
        queues.append(Queue(partitions={"val" if validate else "train"}))
        monkeypatch.setattr(module, "tq", queues[-1])
        asyncio.run(fill())
    assert queues[0].tags == queues[1].tags
    assert queues[0].put.keys() == queues[1].put.keys() == {"u_0_0", "u_1_0"}
    for key, fields in queues[0].put.items():
        assert fields.keys() == queues[1].put[key].keys()
        for name, value in fields.items():
            ours = queues[1].put[key][name]
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.shape) == (ours.dtype, ours.shape), name
                assert torch.equal(value, ours), name
            else:
                assert value == ours, name


def test_verls_trainer_makes_the_manager_with_the_keywords_that_it_takes():
    from verl.trainer import main_ppo

    from research_rl.verl_plugin.agent_manager import SearchAgentLoopManager

    tree = ast.parse(inspect.getsource(main_ppo))
    (call,) = (
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "create"
        and getattr(node.func.value, "id", "") == "agent_loop_manager_cls"
    )  # fmt: skip
    inspect.signature(SearchAgentLoopManager.create).bind(**{keyword.arg: None for keyword in call.keywords})
    assert not call.args


def test_a_training_ends_at_its_start_if_verl_has_not_loaded_the_plugin(monkeypatch):
    from verl.utils import config

    from research_rl.errors import ConfigError
    from research_rl.verl_plugin.agent_manager import SearchAgentLoopManager, plugin_is_loaded

    assert plugin_is_loaded()
    monkeypatch.setattr(config, "validate_config", lambda *_: None)  # as it is without the plugin: not ours
    with pytest.raises(ConfigError, match="verl has not loaded the plugin research_rl"):
        SearchAgentLoopManager.create(None, None)


def ends_the_run(worker) -> None:
    """Raise what the worker tells the manager that asks it."""
    asyncio.run(worker.fail_if_failed())


@pytest.mark.parametrize("validate", [False, True])
def test_a_failure_after_the_rollout_ends_the_run_and_leaves_no_half_group_to_train_on(run_group, validate):
    statuses, put = run_group([GOOD] * 4, put_fails=True, validate=validate)
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(OSError, match="the queue is gone"):
        ends_the_run(run_group.worker)


def test_a_bug_in_a_rollout_ends_the_run(run_group):
    statuses, put = run_group([GOOD] * 4, failing=1, loop_error=ZeroDivisionError)
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(ZeroDivisionError):
        ends_the_run(run_group.worker)


def test_a_bug_in_the_log_ends_the_run_and_puts_nothing(run_group, worker_module, monkeypatch):
    monkeypatch.setattr(worker_module.TrajectoryLog, "write", lambda self, record: {}["key"])
    statuses, put = run_group([GOOD] * 4)
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(KeyError):
        ends_the_run(run_group.worker)


def test_a_tool_that_cannot_say_since_when_it_is_out_ends_the_run(run_group, monkeypatch):
    from research_rl.tools.search import SearchTool

    monkeypatch.setattr(SearchTool, "outage_s", property(lambda self: 1 / 0), raising=False)
    statuses, _ = run_group([GOOD] * 2, section={"method": "tool_calls", "method_options": {}}, failing=0)
    assert statuses == ["running", "failure"]
    with pytest.raises(ZeroDivisionError):
        ends_the_run(run_group.worker)


def test_rollouts_of_a_question_of_which_some_lack_log_probabilities_are_refused(loop_module):
    from research_rl.errors import GenerationError
    from research_rl.methods.research import ReSearch
    from research_rl.verl_plugin.rollout_queue import put_group

    outputs = [finished(loop_module, session, ReSearch()).output for session in range(2)]
    outputs[1].response_logprobs = None
    with pytest.raises(GenerationError, match="some rollouts of a question have no rollout_log_probs"):
        asyncio.run(put_group(ROW, outputs, validate=False))


def test_a_log_that_cannot_be_written_costs_no_rollout(run_group, tmp_path, capsys):
    (tmp_path / "file").touch()
    statuses, put = run_group([GOOD] * 4, {"trajectory_dir": str(tmp_path / "file" / "t")})
    assert (statuses, sorted(put)) == (["running", "finished"], [0, 1, 2, 3])
    assert capsys.readouterr().err.count("TRAJECTORIES CANNOT BE WRITTEN") == 1
    ends_the_run(run_group.worker)


def test_the_manager_asks_every_worker_before_it_hands_out_more(monkeypatch):
    manager_module = pytest.importorskip("research_rl.verl_plugin.agent_manager")
    from verl.utils import tensordict_utils as tu

    handed_out = []

    def get(results):
        for failure in results:
            if failure:
                raise manager_module.RayTaskError("fail_if_failed", "traceback", failure)

    def worker(failure):
        return SimpleNamespace(
            fail_if_failed=SimpleNamespace(remote=lambda: failure),
            generate_sequences=SimpleNamespace(remote=lambda share: handed_out.append(list(share["uid"]))),
        )

    batch = tu.get_tensordict({"uid": ["a", "b", "c"]})
    monkeypatch.setattr(manager_module.ray, "get", get)
    manager_module.SearchAgentLoopManager([worker(None), worker(None)]).generate_sequences(batch)
    assert handed_out == [["a", "b"], ["c"]]
    with pytest.raises(ZeroDivisionError, match="in the second"):
        manager_module.SearchAgentLoopManager([worker(None), worker(ZeroDivisionError("in the second"))]).generate_sequences(
            batch
        )
    assert len(handed_out) == 2


def test_a_path_that_is_too_long_to_be_rewritten_is_not_asked_for(loop_module, tokenizer, tmp_path):
    server = Server(tokenizer, [f"{GOOD}<|endoftext|>", "rewritten"])
    loop = make(loop_module, tokenizer, config(tmp_path), server)
    loop.rollout_config.max_model_len = 300
    rollout = asyncio.run(loop.run({"temperature": 1.0}, ROW))
    asked = len(server.parameters)
    assert asyncio.run(rollout.complete([{"role": "user", "content": "word " * 400}])) == ""
    assert len(server.parameters) == asked
    assert asyncio.run(rollout.complete([{"role": "user", "content": "word"}])) == "rewritten"


def test_a_service_that_refuses_everything_ends_the_run_at_once(run_group):
    run_group([GOOD] * 2, failing=0, loop_error=WrongServiceError)
    with pytest.raises(WrongServiceError):
        ends_the_run(run_group.worker)


@pytest.mark.parametrize(("failure", "lost", "raised", "says"), [
    (None, 0, None, ""), (None, 3, None, "lost 3 questions"), (ValueError("keys"), 3, RetrievalError, "lost 3 questions"),
    (ValueError("a bug"), 0, ValueError, "a bug"),
])  # fmt: skip
def test_a_validation_tells_what_it_is_without(failure, lost, raised, says, capsys):
    from research_rl.verl_plugin import trainer as hooks

    def validate():
        if failure:
            raise failure
        return {"em": 1.0}

    manager = SimpleNamespace(fail_if_failed=lambda: None, lost_questions=lambda: lost)
    trainer = SimpleNamespace(config={"research_rl": {}}, agent_loop_manager=manager, global_steps=4)
    if raised:
        with pytest.raises(raised, match=says):
            hooks._validate(validate, trainer, (), {})
    else:
        assert hooks._validate(validate, trainer, (), {}) == {"em": 1.0, "validation/search/lost_questions": lost}
        assert says in capsys.readouterr().err


def test_a_failure_that_ends_the_run_is_the_end_of_a_validation_whatever_it_says():
    from research_rl.verl_plugin import trainer as hooks

    def down():
        raise RetrievalError("down")

    trainer = SimpleNamespace(config={"research_rl": {}}, agent_loop_manager=SimpleNamespace(fail_if_failed=down))
    with pytest.raises(RetrievalError, match="down"):
        hooks._validate(lambda: [][0], trainer, (), {})


@pytest.mark.parametrize(("outage_s", "ends"), [(100.0, False), (400.0, True)])
def test_an_outage_ends_the_run_once_it_is_longer_than_what_is_tolerated(run_group, monkeypatch, outage_s, ends):
    from research_rl.retrieval import RetrievalClient

    monkeypatch.setattr(RetrievalClient, "outage_s", outage_s)
    run_group([GOOD] * 2, failing=0)
    if ends:
        with pytest.raises(RetrievalError, match="down"):
            ends_the_run(run_group.worker)
    else:
        ends_the_run(run_group.worker)


@pytest.mark.parametrize(("outage_s", "ends"), [(100.0, False), (400.0, True)])
def test_an_outage_of_a_tools_own_server_is_treated_likewise(run_group, monkeypatch, outage_s, ends):
    from research_rl.tools.search import SearchTool

    monkeypatch.setattr(SearchTool, "outage_s", outage_s)
    run_group([GOOD] * 2, section={"method": "tool_calls", "method_options": {}}, failing=0)
    if ends:
        with pytest.raises(RetrievalError, match="down"):
            ends_the_run(run_group.worker)
    else:
        ends_the_run(run_group.worker)


def test_a_measurement_that_lost_questions_tells_how_many(run_group):
    run_group([GOOD] * 2, failing=0, validate=True)
    assert asyncio.run(run_group.worker.lost_questions(validate=False)) == 0
    assert asyncio.run(run_group.worker.lost_questions()) == 1
    assert asyncio.run(run_group.worker.lost_questions()) == 0


def test_queries_that_fail_alone_cost_their_questions_and_too_many_end_the_run(run_group):
    from research_rl.verl_plugin.failed_queries import FailedQueries

    run_group([GOOD] * 8, failing=tuple(range(8)), loop_error=QueryFailedError)
    ends_the_run(run_group.worker)  # eight queries, one question
    assert run_group.worker._failed_queries.failed == 1
    counted = FailedQueries(0.05)
    counted.questions = 200
    for _ in range(10):
        counted.add(QueryFailedError("HTTP 400"))
    with pytest.raises(RetrievalError, match=r"11 failed queries in 200 questions.*max_failed_query_share=0\.05.*HTTP 400"):
        counted.add(QueryFailedError("HTTP 400"))


@pytest.fixture(scope="module")
def stage_file(tmp_path_factory):
    """The first row of the parquet that `make data-r1_searcher` writes for stage 1."""
    import json

    import pyarrow.parquet as pq

    from data_preprocess.__main__ import main

    folder = tmp_path_factory.mktemp("stages")
    (folder / "stage_1.jsonl").write_text(json.dumps({"idx": 1, "question": "Who?", "answer": "Orla Venn"}) + "\n")
    command = ["r1_searcher", "--out", str(folder), "--split", "stage_1", "--input", str(folder / "stage_1.jsonl")]
    assert main(command) == 0
    return pq.read_table(folder / "stage_1.parquet").to_pylist()[0]


@pytest.mark.parametrize(("searched", "ends"), [(True, True), (False, False)])
def test_stage_one_ends_by_its_metric_on_the_file_that_make_writes(
    loop_module, tokenizer, tmp_path, monkeypatch, run_group, stage_file, searched, ends
):
    from research_rl.training.stages import ENDED
    from research_rl.verl_plugin.checkpoint import SearchCheckpoint

    async def search(self, queries, top_k):
        return [[Passage("1", "Orla Venn")] for _ in queries]

    monkeypatch.setattr(loop_module.RetrievalClient, "search", search)
    row = {**ROW, "extra_info": stage_file["extra_info"], "reward_model": stage_file["reward_model"], "global_steps": 1}
    assert row["extra_info"]["split"] == "stage_1"
    texts = ["<think>t</think><search> who</search>"] * searched + [f"{GOOD}<|endoftext|>"]
    section = {"until": {"metric": "retrieval_rate", "reaches": 0.95, "window": 1}, "stage": "retrieval"}
    configuration = config(tmp_path, **section)
    rollout = asyncio.run(make(loop_module, tokenizer, configuration, Server(tokenizer, texts)).run({"temperature": 1.0}, row))
    run_group([GOOD], section, made=rollout)

    trainer = SimpleNamespace(total_training_steps=40)
    configuration.merge_with(
        {"trainer": {"default_local_dir": str(tmp_path / "checkpoints")}, "algorithm": {"adv_estimator": "grpo"}}
    )
    configuration.actor_rollout_ref.model = {"path": str(WEIGHTS)}
    SearchCheckpoint(configuration).on_save(trainer, 1, str(tmp_path / "checkpoints" / "global_step_1"))
    assert trainer.total_training_steps == (1 if ends else 40)
    assert (tmp_path / "checkpoints" / ENDED).is_file() is ends


def test_a_checkpoint_that_finds_no_training_trajectory_tells(tmp_path, run_group, capsys):
    from research_rl.verl_plugin.checkpoint import SearchCheckpoint

    section = {"until": {"metric": "retrieval_rate", "reaches": 0.95, "window": 1}}
    run_group([GOOD] * 2, section, validate=True)
    configuration = config(tmp_path, **section)
    configuration.merge_with(
        {"trainer": {"default_local_dir": str(tmp_path / "checkpoints")}, "algorithm": {"adv_estimator": "grpo"}}
    )
    configuration.actor_rollout_ref.model = {"path": str(WEIGHTS)}
    SearchCheckpoint(configuration).on_save(SimpleNamespace(), 5, str(tmp_path / "checkpoints" / "global_step_5"))
    assert "NO TRAINING TRAJECTORY" in capsys.readouterr().err


def test_a_checkpoint_that_a_kill_left_without_manifest_gets_it_when_the_run_goes_on(tmp_path):
    from research_rl.inference.protocol import MANIFEST
    from research_rl.verl_plugin.config import settings_of
    from research_rl.verl_plugin.manifest import finish_last

    configuration = config(tmp_path)
    configuration.merge_with(
        {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto"}, "algorithm": {"adv_estimator": "grpo"}}
    )
    configuration.actor_rollout_ref.model = {"path": str(WEIGHTS)}
    exported = tmp_path / "global_step_3" / "actor" / "huggingface"
    exported.mkdir(parents=True)
    finish_last(configuration, settings_of(configuration))
    assert not (exported / MANIFEST).exists()  # verl does not count it as a checkpoint
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    finish_last(configuration, settings_of(configuration))
    assert not (tmp_path / "global_step_4").exists()  # somebody has removed it
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    finish_last(configuration, settings_of(configuration))
    assert '"step": 3' in (exported / MANIFEST).read_text()
    assert (exported.parents[1] / MANIFEST).read_text() == (exported / MANIFEST).read_text()


def test_what_the_loggers_read_from_the_environment_reaches_a_cluster_that_runs_already(monkeypatch):
    from research_rl.verl_plugin.checks import carry_environment

    monkeypatch.setenv("TENSORBOARD_DIR", "/here/tensorboard")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", "/here/metrics.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    configuration = OmegaConf.create(
        {"ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"TENSORBOARD_DIR": "/by/hand"}}}}}
    )
    OmegaConf.set_struct(configuration, True)
    carry_environment(configuration)
    given = configuration.ray_kwargs.ray_init.runtime_env.env_vars
    assert (given.TENSORBOARD_DIR, given.VERL_FILE_LOGGER_PATH) == ("/by/hand", "/here/metrics.jsonl")
    assert "OPENAI_API_KEY" not in given


@pytest.mark.parametrize(
    ("python", "cluster", "ray", "executable"),
    [
        ("/python", "", {"num_cpus": 8}, "/python"),
        ("", "", {"num_cpus": 8}, None),
        ("/python", "10.0.0.1:6379", {"num_cpus": 8}, None),
        ("/python", "", {"num_cpus": 8, "address": "auto"}, None),
        ("/python", "", {"num_cpus": None}, None),  # Ray looks for a cluster that was started on this machine
    ],
)
def test_rays_workers_are_forked_if_the_trainer_was_and_ray_is_started_by_it(monkeypatch, python, cluster, ray, executable):
    from ray.runtime_env import RuntimeEnv

    from research_rl.verl_plugin.checks import fork_workers

    monkeypatch.setenv("PYTHON_EXEC", python)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    configuration = OmegaConf.create({"ray_kwargs": {"ray_init": ray}})
    OmegaConf.set_struct(configuration, True)
    fork_workers(configuration)
    given = configuration.ray_kwargs.ray_init.get("runtime_env") or {}
    assert RuntimeEnv(**given).py_executable() == executable


def test_the_figures_of_the_training_rollouts_reach_verls_loggers(monkeypatch, tmp_path):
    import transfer_queue
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from research_rl.verl_plugin import trainer as hooks

    assert hasattr(PPOTrainer.step, "__wrapped__")  # by the entry point
    assert hasattr(PPOTrainer._compute_metrics, "__wrapped__")
    assert hasattr(PPOTrainer._validate, "__wrapped__")
    rows = {"a_0_0": {"em": 1.0, "searches": 2.0}, "a_1_0": {"em": 0.0, "searches": 1.0, "memorised": 1.0}, "pad": {"em": 9.0}}
    health = {"group": "a", "figures": {"search_rate": 1.0}, "search_seconds": None, "logprob": -1.0}

    def kv_batch_get(keys, partition_id, select_fields):
        return list_of_dict_to_tensordict(
            [
                {"extra_fields": {"reward_extra_info": rows[key], hooks.HEALTH: {**health, "score": rows[key]["em"]}}}
                for key in keys
            ]
        )

    monkeypatch.setattr(transfer_queue, "kv_batch_get", kv_batch_get)
    batch = SimpleNamespace(keys=list(rows), tags=[{}, {}, {"is_padding": True}], partition_id="train")
    metrics = {"loss": 1.0}
    configuration = OmegaConf.create(
        {"research_rl": {}, "trainer": {"default_local_dir": str(tmp_path / "checkpoints"), "save_freq": 5}}
    )
    manager = SimpleNamespace(lost_questions=lambda validate: 3)
    trainer = SimpleNamespace(config=configuration, agent_loop_manager=manager, global_steps=1)
    assert hooks._step(lambda *args: batch, trainer, (metrics, {}), {}) is batch
    assert metrics == {
        "loss": 1.0, "training/search/em": 0.5, "training/search/searches": 1.5, "training/search/memorised": 1.0,
        "health/search_rate": 1.0, "health/uninformative_groups": 0.0, "health/entropy_estimate": 1.0, "health/preferred_logprob": -1.0,
        "health/lost_groups": 3, "health/alarms": 0,
    }  # fmt: skip


SEARCH = "I wonder.<external>q</external>\n<document>\n(1)x\n</document>\n It is her.\\boxed{Orla Venn}"


def test_the_group_reward_reaches_the_batch_and_the_log(run_group, tmp_path):
    section = {"method": "r1_searcher_pp"}
    _, put = run_group(["\\boxed{Orla Venn}", SEARCH, "\\boxed{nobody}"], section)
    assert [put[session]["rm_scores"].sum() for session in range(3)] == [1.5, 1.0, 0.0]
    assert put[0]["extra_fields"]["reward_extra_info"]["reward/group"] == 0.5
    assert (put[1]["extra_fields"]["health"]["score"], put[1]["extra_fields"]["health"]["figures"]["search_rate"]) == (1.0, 1.0)
    scores = {record["session"]: record["metrics"]["score"] for record in read(tmp_path / "trajectories")}
    assert scores == {0: 1.5, 1: 1.0, 2: 0.0}


def test_a_method_that_fails_on_a_group_ends_the_run_instead_of_hanging_it(run_group, monkeypatch):
    from research_rl.methods.research import ReSearch

    def regroup(self, trajectories, rewards):
        raise KeyError("a bug")

    monkeypatch.setattr(ReSearch, "regroup", regroup)
    statuses, put = run_group([GOOD] * 3)
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(KeyError, match="a bug"):
        ends_the_run(run_group.worker)


@pytest.mark.parametrize(("template", "end"), [("sys", "<end_of_turn>"), ("base", "<|endoftext|>")])
def test_a_correct_rollout_that_searched_carries_a_path_without_search_to_the_actor(run_group, template, end):
    section = {"method": "r1_searcher_pp", "memorisation": {"mu": 0.1, "rewriter": "extract"}}
    section["method_options"] = {"template": template}
    _, put = run_group(["\\boxed{Orla Venn}", SEARCH, SEARCH.replace("Orla", "Nora")], section)
    memories = [put[session]["extra_fields"]["memory"] for session in range(3)]
    path = "<internal>I wonder. It is her.</internal>\\boxed{Orla Venn}"
    assert memories == [None, {"prompt_ids": [], "response_ids": [*GEMMA.encode(path), *GEMMA.encode(end)], "mu": 0.1}, None]


def test_a_rewriter_that_fails_ends_the_run_and_breaks_no_group(run_group):
    section = {"method": "r1_searcher_pp", "memorisation": {"mu": 0.1, "rewriter": "policy"}}
    statuses, put = run_group([SEARCH, SEARCH], section)  # the policy of these rollouts cannot be asked
    assert (statuses, put) == (["running", "failure"], {})
    with pytest.raises(TypeError):
        ends_the_run(run_group.worker)


def test_without_mu_nothing_is_rewritten(run_group):
    _, put = run_group([SEARCH, SEARCH], {"method": "r1_searcher_pp"})
    assert all("memory" not in output["extra_fields"] for output in put.values())
