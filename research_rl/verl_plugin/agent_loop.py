"""verl's agent loop around `research_rl.rollout.rollout`: one trajectory, scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from uuid import uuid4

from research_rl.codec import HFCodec, load_codec
from research_rl.errors import DataError, missing_extra
from research_rl.judge_client import Judge, Judgement
from research_rl.questions import question_of
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import Generation, rollout
from research_rl.scoring import judged_reward
from research_rl.tools.base import Toolbox
from research_rl.training.memorisation import Complete
from research_rl.training.settings import Settings
from research_rl.types import Message, Reward, Trajectory
from research_rl.verl_plugin.config import chat_template_kwargs, settings_of
from research_rl.verl_plugin.generation import merge_steps, sampling, up_to_stop

try:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.utils.fs import copy_to_local
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

NAME = "research_rl"
ROLLOUT = "rollout"  # field that carries a rollout to the worker, which scores and logs it once the group is complete


@cache
def client_for(settings: RetrievalSettings) -> RetrievalClient:
    """Return this process's client of one service."""
    return RetrievalClient(settings)


def retrieval_client(settings: Settings, row: Mapping[str, Any]) -> RetrievalClient:
    """Return this process's client of the service for a dataset row."""
    return client_for(settings.retrieval_for(str(row.get("data_source", ""))))


class Progress:
    """How many turns this process has rolled out; read by the watchdog."""

    turns = 0


@dataclass
class FinishedRollout:
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
        self._settings: Settings = once_per(self.config, settings_of)
        self._method = self._settings.load()
        self._budget = self._settings.budget(self.rollout_config.response_length)
        self._interrupted = self.config.trainer.v1.trainer_mode != "sync"
        self._sampling = partial(sampling, interrupted=self._interrupted, engine=self.rollout_config.name)

    @property
    def _codec(self) -> HFCodec:
        # made on first use, in `run`, because only errors in `run` end the training
        return once_per(self.tokenizer, self._load_codec)

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
                request_id=request, prompt_ids=ids, sampling_params=self._sampling(sampling_params, most, stop)
            )
            merge_steps(extra, output.extra_fields)
            Progress.turns += 1
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
            parameters = self._sampling({**sampling_params, "temperature": memory.temperature}, limit, ())
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
            "split": str(info_of(row).get("split", "")),  # the data set's split; the worker adds whether this is a validation
            "type": str(info_of(row).get("type", "")),
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
                ROLLOUT: FinishedRollout(trajectory, golden_answers, reward, record, complete, self._codec, judgement),
            },
        )

    async def _judge(self, question: str, golden_answers: Sequence[str], answer: str) -> Judgement | None:
        if (settings := self._settings.judging()) is None:
            return None
        # made here, not in the constructor, because only errors in `run` end the training
        return await once_per(settings, Judge).judge(question, golden_answers, answer)


def info_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a dataset row says of its question beside the answers."""
    return row.get("extra_info") or {}


def _number(value: Any) -> int:
    return -1 if value is None else int(value)


# by the id() of the object it was made from, which is kept alive here so that its id is not reused
_MADE: dict[int, tuple[Any, Any]] = {}


def once_per(source: Any, make: Callable[[Any], Any]) -> Any:
    """Return `make(source)`, computed once: verl passes the same configuration and tokenizer to the instances of all trajectories."""
    if id(source) not in _MADE:
        _MADE[id(source)] = (source, make(source))
    return _MADE[id(source)][1]


register(NAME)(SearchAgentLoop)
