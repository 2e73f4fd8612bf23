"""verl's agent loop around `research_rl.rollout.rollout`, and the manager that ends a run when the retrieval service is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

from research_rl.codec import HFCodec, load_codec
from research_rl.errors import DataError, RetrievalError, missing_extra
from research_rl.methods.base import Method
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import Generation, rollout
from research_rl.scoring import trajectory_metrics
from research_rl.training.memorisation import Complete, memory
from research_rl.training.settings import Settings
from research_rl.training.trajectory_log import TrajectoryLog
from research_rl.types import Message, Reward, Trajectory
from research_rl.verl_plugin.checks import chat_template_kwargs, settings_of

try:
    import ray
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
    from verl.utils.fs import copy_to_local
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

NAME = "research_rl"
_ROLLOUT = "rollout"  # travels from the loop to the worker, which scores and writes it once the group is whole
MEMORY = "memory"  # travels on to the actor: a search-free path for the likelihood term (see verl_plugin/memorisation.py)


@cache
def client_for(settings: RetrievalSettings) -> RetrievalClient:
    """Return this process's client of one service."""
    return RetrievalClient(settings)


@cache
def log_for(directory: str, attempt: float) -> TrajectoryLog:
    """Return this process's trajectory log."""
    return TrajectoryLog(directory, attempt)


class _Fatal:
    """The last unrecoverable failure of this process; set by a loop, read by the worker when it is asked for more rollouts.

    verl only logs what a loop raises and, with `sync_refill_failed_groups`, tries the next question: for ever, if nothing ends the run.
    """

    error: Exception | None = None


@dataclass
class _Rollout:
    """A finished rollout on its way through the worker; `complete` asks the policy for something else."""

    trajectory: Trajectory
    golden_answers: list[str]
    reward: Reward
    record: dict[str, Any]
    complete: Complete
    codec: HFCodec


class SearchAgentLoop(AgentLoopBase):
    """Rolls out one question. verl makes one instance per trajectory, so everything costly is cached per process."""

    def __init__(self, *args: Any, hf_model_type: str | None = None, **kwargs: Any) -> None:
        # None: verl's chat-turn builder stays generic; it is not used, since the rollout goes from tokens to tokens itself
        super().__init__(*args, hf_model_type=None, **kwargs)
        self._settings: Settings = _once_per(self.config, settings_of)
        self._method = self._settings.load()
        self._budget = self._settings.budget(self.rollout_config.response_length)

    @property
    def _codec(
        self,
    ) -> HFCodec:  # not made in the constructor: what is wrong with it must end the run, as anything in `run` does
        return _once_per(self.tokenizer, self._load_codec)

    def _load_codec(self, tokenizer: Any) -> HFCodec:
        # where verl's engine has the model from: verl has copied a remote path (hdfs://…) to this machine, and the same call says whereto
        model = self.config.actor_rollout_ref.model
        directory = copy_to_local(model.path, use_shm=model.get("use_shm", False))
        return load_codec(tokenizer, directory, self._settings.bos, chat_template_kwargs(self.data_config))

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Return the trajectory of one dataset row as verl wants it, scored.

        Raises:
            RetrievalError: the service gave no answer; verl then drops the group and the sampler replaces it.
            DataError: the prompt is longer than `data.max_prompt_length`.
        """
        try:
            return await self._run(sampling_params, row)
        except Exception as error:
            tolerated = self._settings.max_tolerated_outage_s
            if not isinstance(error, RetrievalError) or self._client(row).silent_for_s > tolerated:
                _Fatal.error = error
            raise

    def _client(self, row: Mapping[str, Any]) -> RetrievalClient:
        return client_for(self._settings.retrieval_for(str(row.get("data_source", ""))))

    async def _run(self, sampling_params: dict[str, Any], row: Mapping[str, Any]) -> AgentLoopOutput:
        question, golden_answers = question_of(row)
        prompt_ids = self._codec.encode_prompt(self._method.prompt(question), self._method.prefill)
        if len(prompt_ids) > self.rollout_config.prompt_length:
            raise DataError(
                f"the prompt has {len(prompt_ids)} tokens, data.max_prompt_length is {self.rollout_config.prompt_length}: "
                f"{question[:200]!r}"
            )
        client = self._client(row)
        request, extra = uuid4().hex, {}

        async def generate(ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
            output = await self.server_manager.generate(
                request_id=request, prompt_ids=ids, sampling_params=_sampling(sampling_params, most, stop)
            )
            _merge_steps(extra, output.extra_fields)
            return Generation(list(output.token_ids), list(output.log_probs or ()))

        async def complete(messages: list[Message]) -> str:
            memory = self._settings.memory()
            limit = min(memory.max_tokens, self.rollout_config.response_length)
            asked = {**sampling_params, "temperature": memory.temperature}
            output = await self.server_manager.generate(
                request_id=uuid4().hex,
                # a base model without a chat template is asked in plain text
                prompt_ids=self._codec.encode_prompt(
                    messages if getattr(self.tokenizer, "chat_template", None) else messages[-1]["content"] + "\n"
                ),
                sampling_params=_sampling(asked, limit, ()),
            )
            ids = [number for number in output.token_ids if number not in self._codec.eos_ids]
            return self._codec.decode(ids)

        trajectory = await rollout(self._method, self._codec, question, prompt_ids, self._budget, generate, client.search)
        reward = self._method.reward(trajectory, golden_answers)
        record = {
            "step": _number(row.get("global_steps")),
            "stage": self._settings.stage,
            "split": str(_info(row).get("split", "")),
            "type": str(_info(row).get("type", "")),
            "uid": str(row.get("uid", "")),
            "data_source": str(row.get("data_source", "")),
            "golden_answers": golden_answers,
            "answer": self._method.answer(trajectory) or "",
        }
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=trajectory.response_ids,
            response_mask=trajectory.response_mask,
            response_logprobs=trajectory.logprobs or None,
            reward_score=reward.score,
            num_turns=1 + len(trajectory.turns) + len(trajectory.searches),
            metrics=AgentLoopMetrics(
                generate_sequences=trajectory.seconds_generating, tool_calls=trajectory.seconds_searching, compute_score=0.0
            ),
            extra_fields={
                **extra,
                "turn_scores": [],
                "tool_rewards": [],
                _ROLLOUT: _Rollout(trajectory, golden_answers, reward, record, complete, self._codec),
            },
        )


def _sampling(parameters: Mapping[str, Any], most: int, stop: tuple[str, ...]) -> dict[str, Any]:
    from vllm.sampling_params import RequestOutputKind

    # FINAL_ONLY: verl waits for the end anyway, and one message per request instead of one per token frees the engine's process.
    return {
        **parameters,
        "max_tokens": most,
        "stop": list(stop),
        "include_stop_str_in_output": True,
        "output_kind": RequestOutputKind.FINAL_ONLY,
    }


def _merge_steps(extra: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Keep the oldest and the newest weights' version that a trajectory was sampled with; verl's off-policy metrics need both."""
    for key, choose in (("min_global_steps", min), ("max_global_steps", max)):
        if new.get(key) is not None:
            extra[key] = choose(extra.get(key, new[key]), new[key])


def _info(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("extra_info") or {}


def _number(value: Any) -> int:
    return -1 if value is None else int(value)


def question_of(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return question and golden answers of a dataset row (see research_rl.questions.to_verl_row).

    Raises:
        DataError: one of them is missing.
    """
    question = _info(row).get("question") or (row["raw_prompt"][-1]["content"] if row.get("raw_prompt") else None)
    golden = (row.get("reward_model") or {}).get("ground_truth")
    golden = [golden] if isinstance(golden, str) else [str(answer) for answer in golden] if golden is not None else []
    if not question or not golden:
        raise DataError(f"a row needs extra_info.question and reward_model.ground_truth, got columns {sorted(row)}")
    return str(question), golden


_MADE: dict[
    int, tuple[Any, Any]
] = {}  # by identity of what it was made from (kept alive here, so that no identity is used twice)


def _once_per(source: Any, make: Callable[[Any], Any]) -> Any:
    """Return `make(source)`, made once: verl passes the same configuration and tokenizer to every trajectory's instance."""
    if id(source) not in _MADE:
        _MADE[id(source)] = (source, make(source))
    return _MADE[id(source)][1]


register(NAME)(SearchAgentLoop)


_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # the class under verl's @ray.remote


class _Group:
    """The rollouts of one question: they enter the batch together or not at all, and are scored together.

    verl replaces a failed group only if none of its rollouts arrived. In an outage those that never searched would arrive,
    and be trained on as if they were the group.
    """

    def __init__(self, size: int, method: Method) -> None:
        self._size, self._method = size, method
        self._arrived: dict[int, _Rollout | None] = {}
        self.rewards: dict[int, Reward] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.failed, self.settled = False, asyncio.Event()

    def arrive(self, session: int, rollout: _Rollout | None) -> None:
        """Note that a session ended, with a rollout or with a failure (None); only its first call counts."""
        if session in self._arrived:
            return
        self._arrived[session] = rollout
        if len(self._arrived) < self._size:
            return
        whole = {number: rollout for number, rollout in sorted(self._arrived.items()) if rollout is not None}
        self.failed = len(whole) < self._size
        try:
            if not self.failed:
                self._score(whole)
        except (
            Exception
        ) as error:  # a bug in a method: no rollout of the question is trained on, and the run ends with the next one
            self.failed, _Fatal.error = True, error
        finally:
            self.settled.set()

    def _score(self, whole: dict[int, _Rollout]) -> None:
        alone = [(rollout.trajectory, rollout.reward) for rollout in whole.values()]
        rewards = self._method.regroup([trajectory for trajectory, _ in alone], [reward for _, reward in alone])
        self.rewards = dict(zip(whole, rewards, strict=True))
        for number, made in whole.items():
            self.metrics[number] = trajectory_metrics(self._method, made.trajectory, made.golden_answers, self.rewards[number])


class _SearchAgentLoopWorker(_Worker):
    """verl's worker, with whole groups; asked for more rollouts after a fatal failure, it raises that and so ends the run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: dict[str, _Group] = {}
        self._settings: Settings = settings_of(self.config)

    async def generate_sequences(self, batch: Any) -> None:
        if _Fatal.error is not None:
            raise _Fatal.error
        await super().generate_sequences(batch)

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        rollout_config = self.config.actor_rollout_ref.rollout
        size = prompt.get("__rollout_n__", rollout_config.val_kwargs.n if trajectory["validate"] else rollout_config.n)
        uid = str(prompt["uid"])
        self._groups[uid] = _Group(int(size), self._settings.load())
        try:
            await super()._run_prompt(prompt, sampling_params, trajectory=trajectory, trace=trace)
        finally:
            del self._groups[uid]

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, **kwargs: Any) -> Any:
        try:
            return await super()._run_agent_loop(sampling_params, trajectory=trajectory, **kwargs)
        except BaseException:
            self._groups[str(kwargs["uid"])].arrive(kwargs["session_id"], None)
            raise

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        rollout: _Rollout = output.extra_fields.pop(_ROLLOUT)
        group, session = self._groups[str(kwargs["uid"])], kwargs["session_id"]
        group.arrive(session, rollout)
        await group.settled.wait()
        if group.failed:
            raise RetrievalError("dropped, because another rollout of the same question failed")
        settings, reward, metrics = self._settings, group.rewards[session], group.metrics[session]
        if settings.memory().mu and not validate:
            output.extra_fields[MEMORY] = memorised = await self._memorise(rollout)
            metrics["memorised"] = float(memorised is not None)
        output.reward_score = reward.score
        output.extra_fields["reward_extra_info"] = metrics
        if settings.trajectory_dir:
            record = {**rollout.record, "metrics": metrics, **rollout.trajectory.to_json()}
            log_for(settings.trajectory_dir, settings.attempt).write(record)
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    async def _memorise(self, rollout: _Rollout) -> dict[str, Any] | None:
        """Return prompt and search-free path of a correct rollout that searched, as ids, with μ; None if there is none."""
        settings, trajectory = self._settings.memory(), rollout.trajectory
        method: Any = self._settings.load()  # has what `Memorises` asks for: the settings were checked
        try:
            if not trajectory.searches or not method.right(method.answer(trajectory), rollout.golden_answers):
                return None
            text = await memory(method, settings, trajectory, rollout.golden_answers, rollout.complete)
        except (
            Exception
        ) as error:  # the group is whole and enters the batch; without its rewriter the run ends with the next one
            _Fatal.error = error
            return None
        if text is None:
            return None
        end = rollout.codec.end_of_turn(method.prompt(trajectory.question))
        response = [*rollout.codec.encode(text), end]
        return {"prompt_ids": trajectory.prompt_ids, "response_ids": response, "mu": settings.mu}


class SearchAgentLoopManager(AgentLoopManagerTQ):
    """Named by `rollout.agent.agent_loop_manager_class`; importing it registers the agent loop in every worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(_SearchAgentLoopWorker)
