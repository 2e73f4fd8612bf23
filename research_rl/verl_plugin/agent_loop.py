"""verl's agent loop around `research_rl.rollout.rollout`, and the manager that ends a run if the retrieval service stays unavailable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from uuid import uuid4

from research_rl.codec import HFCodec, load_codec, turn_tokens
from research_rl.errors import DataError, QueryFailedError, RetrievalError, WrongServiceError, missing_extra
from research_rl.health import rollout_health
from research_rl.judge_client import Judge, Judgement
from research_rl.methods.base import Method
from research_rl.questions import question_of
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import Generation, rollout
from research_rl.scoring import judged_reward, trajectory_metrics
from research_rl.tools.base import Toolbox
from research_rl.training.memorisation import Complete, memory
from research_rl.training.settings import Settings
from research_rl.training.trajectory_log import TrajectoryLog
from research_rl.types import Message, Reward, Trajectory
from research_rl.verl_plugin.config import chat_template_kwargs, settings_of
from research_rl.verl_plugin.generation import merge_steps, sampling, up_to_stop
from research_rl.verl_plugin.groups import DroppedError, FailedQueries, Group
from research_rl.verl_plugin.judging import Unjudged, together
from research_rl.verl_plugin.trainer import HEALTH

try:
    import ray
    import transfer_queue as tq
    from ray.exceptions import RayTaskError
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
    from verl.utils.fs import copy_to_local
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

NAME = "research_rl"
_ROLLOUT = (
    "rollout"  # field that carries a rollout from the loop to the worker, which scores and logs it once the group is complete
)
MEMORY = (
    "memory"  # field that carries a search-free path to the actor, for the likelihood term (see verl_plugin/memorisation.py)
)


@cache
def client_for(settings: RetrievalSettings) -> RetrievalClient:
    """Return this process's client of one service."""
    return RetrievalClient(settings)


def retrieval_client(settings: Settings, row: Mapping[str, Any]) -> RetrievalClient:
    """Return this process's client of the service for a dataset row."""
    return client_for(settings.retrieval_for(str(row.get("data_source", ""))))


@cache
def log_for(directory: str, attempt: float, share: float, max_gb: float | None) -> TrajectoryLog:
    """Return this process's trajectory log."""
    return TrajectoryLog(directory, attempt, share, max_bytes=None if max_gb is None else max_gb * 1e9)


class _Fatal:
    """The first unrecoverable failure of this process. The manager asks every process for it, and ends the run (see `fail_if_failed`).

    verl only logs what a loop raises and, with `sync_refill_failed_groups`, tries the next question: for ever, unless the run is ended.
    """

    error: Exception | None = None


class _Progress:
    """How many turns this process has rolled out; read by the watchdog."""

    turns = 0


@dataclass
class _Rollout:
    """A finished rollout on its way through the worker; `complete` asks the policy for a further completion."""

    trajectory: Trajectory
    golden_answers: list[str]
    reward: Reward
    record: dict[str, Any]
    complete: Complete
    codec: HFCodec
    judgement: Judgement | None = None  # None: there is no judge


class SearchAgentLoop(AgentLoopBase):
    """Rolls out one question. verl makes one instance per trajectory, so everything costly is cached per process."""

    def __init__(self, *args: Any, hf_model_type: str | None = None, **kwargs: Any) -> None:
        # None: verl's builder of chat turns stays generic; it is not used, because the rollout works on token ids
        super().__init__(*args, hf_model_type=None, **kwargs)
        self._settings: Settings = _once_per(self.config, settings_of)
        self._method = self._settings.load()
        self._budget = self._settings.budget(self.rollout_config.response_length)
        self._interrupted = self.config.trainer.v1.trainer_mode != "sync"

    @property
    def _codec(self) -> HFCodec:
        # made on first use, in `run`, because only errors in `run` end the training
        return _once_per(self.tokenizer, self._load_codec)

    def _load_codec(self, tokenizer: Any) -> HFCodec:
        # the directory that verl's engine uses: verl has copied a remote path (hdfs://…) to this machine, and this call returns the copy
        model = self.config.actor_rollout_ref.model
        directory = copy_to_local(model.path, use_shm=model.get("use_shm", False))
        codec = load_codec(tokenizer, directory, self._settings.bos, chat_template_kwargs(self.data_config))
        self._method.check_template(codec)
        return codec

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Return the scored trajectory of one dataset row in verl's format.

        Raises:
            RetrievalError: the service gave no answer.
            JudgeError: see `Judge.judge`.
            DataError: the prompt is longer than `data.max_prompt_length`.
        """
        question, golden_answers = question_of(row)
        prompt_ids = self._codec.encode_prompt(self._method.prompt(question), self._method.prefill)
        if len(prompt_ids) > self.rollout_config.prompt_length:
            raise DataError(
                f"the prompt has {len(prompt_ids)} tokens, data.max_prompt_length is {self.rollout_config.prompt_length}: "
                f"{question[:200]!r}"
            )
        client = retrieval_client(self._settings, row)
        request, extra = uuid4().hex, {}

        async def generate(ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
            output = await self.server_manager.generate(
                request_id=request, prompt_ids=ids, sampling_params=sampling(sampling_params, most, stop, self._interrupted)
            )
            merge_steps(extra, output.extra_fields)
            _Progress.turns += 1
            sampled = list(output.token_ids)
            end = up_to_stop(sampled, self._codec.decode, stop) if self._interrupted else len(sampled)
            return Generation(sampled[:end], list(output.log_probs or ())[:end])

        async def complete(messages: list[Message]) -> str:
            memory = self._settings.memory()
            # a base model without a chat template gets plain text
            asked = messages if getattr(self.tokenizer, "chat_template", None) else messages[-1]["content"] + "\n"
            ids = self._codec.encode_prompt(asked)
            context = self.rollout_config.max_model_len or len(ids) + memory.max_tokens
            limit = min(memory.max_tokens, self.rollout_config.response_length, context - len(ids))
            if limit < 1:
                return ""  # too long to be rewritten: this path is not accepted
            parameters = sampling({**sampling_params, "temperature": memory.temperature}, limit, (), self._interrupted)
            output = await self.server_manager.generate(request_id=uuid4().hex, prompt_ids=ids, sampling_params=parameters)
            ids = [number for number in output.token_ids if number not in self._codec.eos_ids]
            return self._codec.decode(ids)

        toolbox = Toolbox(self._method.tools, client)
        trajectory = await rollout(
            self._method, self._codec, question, prompt_ids, self._budget, generate, client.search, toolbox
        )
        judgement = await self._judge(question, golden_answers, self._method.answer(trajectory) or "")
        reward = judged_reward(self._method, trajectory, golden_answers, judgement and judgement.score)
        record = {
            "step": _number(row.get("global_steps")),
            "stage": self._settings.stage,
            "split": str(_info(row).get("split", "")),  # the data set's split; the worker adds whether this is a validation
            "type": str(_info(row).get("type", "")),
            "uid": str(row.get("uid", "")),
            "data_source": str(row.get("data_source", "")),
            "golden_answers": golden_answers,
            "answer": self._method.answer(trajectory) or "",
            **({"judge_said": judgement.said} if judgement else {}),
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
                _ROLLOUT: _Rollout(trajectory, golden_answers, reward, record, complete, self._codec, judgement),
            },
        )

    async def _judge(self, question: str, golden_answers: Sequence[str], answer: str) -> Judgement | None:
        if (settings := self._settings.judging()) is None:
            return None
        # made here, not in the constructor, because only errors in `run` end the training
        return await _once_per(settings, Judge).judge(question, golden_answers, answer)


def _info(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("extra_info") or {}


def _number(value: Any) -> int:
    return -1 if value is None else int(value)


# by the id() of the object it was made from, which is kept alive here so that its id is not reused
_MADE: dict[int, tuple[Any, Any]] = {}


def _once_per(source: Any, make: Callable[[Any], Any]) -> Any:
    """Return `make(source)`, computed once: verl passes the same configuration and tokenizer to the instances of all trajectories."""
    if id(source) not in _MADE:
        _MADE[id(source)] = (source, make(source))
    return _MADE[id(source)][1]


register(NAME)(SearchAgentLoop)


_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # the class under verl's @ray.remote


class _SearchAgentLoopWorker(_Worker):
    """verl's worker, with whole groups. A failure ends the run unless it is an outage that may pass or costs one question only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: Settings = settings_of(self.config)
        self._groups: dict[str, Group[_Rollout, _Scored]] = {}
        self._failed_queries = FailedQueries(self._settings.max_failed_query_share)
        # questions dropped since the last call of `lost_questions`, in training (False) and in validation (True)
        self._lost = {False: 0, True: 0}
        self._unjudged = {False: Unjudged(), True: Unjudged()}

    async def fail_if_failed(self) -> None:
        """Raise the failure that ends the run, if there was one."""
        if _Fatal.error is not None:
            raise _Fatal.error

    def turns(self) -> int:
        """Return how many turns this worker has rolled out (see watchdog.py)."""
        return _Progress.turns

    async def lost_questions(self, validate: bool = True) -> int:
        """Return how many questions were lost to failed searches: of the validation that has ended, or of training since the last call."""
        lost, self._lost[validate] = self._lost[validate], 0
        return lost

    async def unjudged(self, validate: bool) -> Unjudged:
        """Return the count of answers without a verdict: of the validation that has ended, or of training since the last call."""
        found, self._unjudged[validate] = self._unjudged[validate], Unjudged()
        return found

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        rollout_config = self.config.actor_rollout_ref.rollout
        size = prompt.get("__rollout_n__", rollout_config.val_kwargs.n if trajectory["validate"] else rollout_config.n)
        group = self._groups[str(prompt["uid"])] = Group(int(size), partial(_score, self._settings.load()))
        self._failed_queries.questions += 1
        try:
            await super()._run_prompt(prompt, sampling_params, trajectory=trajectory, trace=trace)
        finally:
            self._lost[bool(trajectory["validate"])] += group.failed
            del self._groups[str(prompt["uid"])]

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, **kwargs: Any) -> Any:
        uid, session = str(kwargs["uid"]), kwargs["session_id"]
        group, entered = self._groups[uid], False
        try:
            result = await super()._run_agent_loop(sampling_params, trajectory=trajectory, **kwargs)
            entered = True
            return result
        except BaseException as error:
            group.fail(session)
            if isinstance(error, Exception) and not isinstance(error, DroppedError):
                _Fatal.error = _Fatal.error or self._fatal(error, kwargs)
            raise
        finally:
            if out := group.leave(session, entered):  # verl would train on an incomplete group
                keys = [f"{uid}_{number}_0" for number in out]
                await tq.async_kv_clear(keys=keys, partition_id="val" if trajectory["validate"] else "train")

    def _fatal(self, error: Exception, row: Mapping[str, Any]) -> Exception | None:
        """Return the error that must end the run; None if only this question is lost."""
        if isinstance(error, QueryFailedError):
            try:
                self._failed_queries.add(error)
            except RetrievalError as too_many:
                return too_many
            return None
        if isinstance(error, RetrievalError) and not isinstance(error, WrongServiceError):
            client, tools = retrieval_client(self._settings, row), self._settings.load().tools.values()
            gone = max(client.outage_s, *(tool.outage_s for tool in tools), 0.0)
            return error if gone > self._settings.max_tolerated_outage_s else None
        return error

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        rollout: _Rollout = output.extra_fields.pop(_ROLLOUT)
        reward, metrics = await self._groups[str(kwargs["uid"])].scored(kwargs["session_id"], rollout)
        settings = self._settings
        if rollout.judgement:
            self._unjudged[bool(validate)].add(rollout.judgement)
        if settings.memory().mu and not validate:
            output.extra_fields[MEMORY] = memorised = await self._memorise(rollout)
            metrics["memorised"] = float(memorised is not None)
        if not validate:
            group, info = str(kwargs["uid"]), _info(kwargs)
            health = rollout_health(settings.load(), rollout.trajectory, rollout.golden_answers, reward.score, group, info)
            output.extra_fields[HEALTH] = vars(health)
        output.reward_score = reward.score
        output.extra_fields["reward_extra_info"] = metrics
        await super()._agent_loop_postprocess(output, validate, **kwargs)
        if settings.trajectory_dir:
            record = {"validate": bool(validate), **rollout.record, "metrics": metrics, **rollout.trajectory.to_json()}
            if settings.trajectory_logprobs:
                for turn, tokens in zip(record["turns"], turn_tokens(rollout.codec, rollout.trajectory), strict=True):
                    turn["tokens"] = tokens
            log = log_for(settings.trajectory_dir, settings.attempt, settings.trajectory_share, settings.trajectory_max_gb)
            log.write(record)

    async def _memorise(self, rollout: _Rollout) -> dict[str, Any] | None:
        """Return the ids of prompt and search-free path of a correct rollout that searched, with μ; None if there is no such path."""
        settings, trajectory = self._settings.memory(), rollout.trajectory
        method: Any = self._settings.load()  # implements `Memorises`, as the settings were checked
        if not trajectory.searches or not method.right(method.answer(trajectory), rollout.golden_answers):
            return None
        text = await memory(method, settings, trajectory, rollout.golden_answers, rollout.complete)
        if text is None:
            return None
        end = rollout.codec.end_of_turn(method.prompt(trajectory.question))
        response = [*rollout.codec.encode(text), end]
        return {"prompt_ids": trajectory.prompt_ids, "response_ids": response, "mu": settings.mu}


_Scored = tuple[Reward, dict[str, float]]


def _score(method: Method, rollouts: Sequence[_Rollout]) -> list[_Scored]:
    """Return reward and metrics of all rollouts of a question; the rewards may depend on one another."""
    rewards = method.regroup([one.trajectory for one in rollouts], [one.reward for one in rollouts])
    return [
        (
            reward,
            trajectory_metrics(method, one.trajectory, one.golden_answers, reward)
            | (one.judgement.figures() if one.judgement else {}),
        )
        for one, reward in zip(rollouts, rewards, strict=True)
    ]


class SearchAgentLoopManager(AgentLoopManagerTQ):
    """Named by `rollout.agent.agent_loop_manager_class`; importing it registers the agent loop in every worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(_SearchAgentLoopWorker)

    def generate_sequences(self, prompts: Any) -> None:
        self.fail_if_failed()
        super().generate_sequences(prompts)

    def fail_if_failed(self) -> None:
        """Raise the failure that ends the run, if a worker met one. Called whenever the trainer asks for rollouts, after a validation,
        and at the end of every step; verl itself would only give the lost rollouts to other workers."""
        try:
            ray.get([worker.fail_if_failed.remote() for worker in self.agent_loop_workers])
        except RayTaskError as error:
            raise error.cause from None

    def lost_questions(self, validate: bool = True) -> int:
        """Return how many questions were lost to failed searches: of the last validation, or of training since the last call."""
        return sum(ray.get([worker.lost_questions.remote(validate) for worker in self.agent_loop_workers]))

    def unjudged(self, validate: bool) -> Unjudged:
        """Return the count of answers without a verdict: of the validation that has just ended, or of training since the last call."""
        return together(ray.get([worker.unjudged.remote(validate) for worker in self.agent_loop_workers]))
