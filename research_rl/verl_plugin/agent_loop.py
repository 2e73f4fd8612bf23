"""`research_rl.rollout.rollout` over verl's engine: one trajectory, scored, in verl's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
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
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.utils.fs import copy_to_local
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


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
    """A finished rollout, which the worker scores and logs once the whole group is there.

    `output`: the trajectory as verl has it, without a reward. `complete` asks the policy for a further completion.
    """

    output: AgentLoopOutput
    trajectory: Trajectory
    golden_answers: list[str]
    reward: Reward
    record: dict[str, Any]
    complete: Complete
    codec: HFCodec
    judgement: Judgement | None = None  # None: there is no judge


class SearchAgentLoop:
    """Rolls out questions with the policy that verl's engine serves."""

    def __init__(self, config: Any, llm_client: Any, tokenizer: Any) -> None:
        """`config`: verl's, with our section; `llm_client`: verl's client of its engine.

        Raises:
            ConfigError: the method does not suit the tokenizer or its chat template.
        """
        self.rollout_config = config.actor_rollout_ref.rollout
        self._settings: Settings = settings_of(config)
        self._method = self._settings.load()
        self._budget = self._settings.budget(self.rollout_config.response_length)
        self._interrupted = config.trainer.v1.trainer_mode != "sync"
        self._sampling = partial(sampling, interrupted=self._interrupted, engine=self.rollout_config.name)
        self._client, self._tokenizer = llm_client, tokenizer
        # the directory that verl's engine uses: verl has copied a remote path (hdfs://…) to this machine, and this call returns the copy
        model = config.actor_rollout_ref.model
        directory = copy_to_local(model.path, use_shm=model.get("use_shm", False))
        self._codec: HFCodec = load_codec(tokenizer, directory, self._settings.bos, chat_template_kwargs(config.data))
        self._method.check_template(self._codec)

    async def run(self, sampling_params: Mapping[str, Any], row: Mapping[str, Any]) -> FinishedRollout:
        """Return the trajectory of one dataset row, with the reward that it has by itself.

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
            output = await self._client.generate(
                request_id=request, prompt_ids=ids, sampling_params=self._sampling(sampling_params, most, stop)
            )
            merge_steps(extra, output.extra_fields)
            Progress.turns += 1
            sampled = list(output.token_ids)
            end = up_to_stop(sampled, self._codec.decode, stop) if self._interrupted else len(sampled)
            logprobs: list[float] = list(output.log_probs or ())
            return Generation(sampled[:end], logprobs[:end])

        async def complete(messages: list[Message]) -> str:
            memory = self._settings.memory()
            # a base model without a chat template gets plain text
            asked = messages if getattr(self._tokenizer, "chat_template", None) else messages[-1]["content"] + "\n"
            ids = self._codec.encode_prompt(asked)
            context = self.rollout_config.max_model_len or len(ids) + memory.max_tokens
            limit = min(memory.max_tokens, self.rollout_config.response_length, context - len(ids))
            if limit < 1:
                return ""  # too long to be rewritten: this path is not accepted
            parameters = self._sampling({**sampling_params, "temperature": memory.temperature}, limit, ())
            output = await self._client.generate(request_id=uuid4().hex, prompt_ids=ids, sampling_params=parameters)
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
        output = AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=trajectory.response_ids,
            response_mask=trajectory.response_mask,
            response_logprobs=trajectory.logprobs or None,
            num_turns=1 + len(trajectory.turns) + len(trajectory.searches),
            metrics=AgentLoopMetrics(
                generate_sequences=trajectory.seconds_generating, tool_calls=trajectory.seconds_searching, compute_score=0.0
            ),
            extra_fields={**extra, "turn_scores": [], "tool_rewards": []},
        )
        return FinishedRollout(output, trajectory, golden_answers, reward, record, complete, self._codec, judgement)

    async def _judge(self, question: str, golden_answers: Sequence[str], answer: str) -> Judgement | None:
        return None if self._judging is None else await self._judging.judge(question, golden_answers, answer)

    @cached_property
    def _judging(self) -> Judge | None:
        settings = self._settings.judging()
        return settings and Judge(settings)


def info_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a dataset row says of its question beside the answers."""
    return row.get("extra_info") or {}


def _number(value: Any) -> int:
    return -1 if value is None else int(value)
