"""One process that rolls out questions: which rollouts enter the batch, with which rewards, and which failure ends the run.

The rollouts of a question enter the batch together or not at all, and are scored together: in an outage, rollouts that never searched would
arrive, and would be trained on as if they were the whole group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from research_rl.codec import turn_tokens
from research_rl.errors import QueryFailedError, RetrievalError, WrongServiceError, missing_extra
from research_rl.health import rollout_health
from research_rl.methods.base import Method
from research_rl.scoring import trajectory_metrics
from research_rl.training.memorisation import memory
from research_rl.training.settings import Settings
from research_rl.training.trajectory_log import TrajectoryLog
from research_rl.types import Reward
from research_rl.verl_plugin.agent_loop import FinishedRollout, Progress, SearchAgentLoop, info_of, retrieval_client
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.failed_queries import FailedQueries
from research_rl.verl_plugin.generation import sampling_of
from research_rl.verl_plugin.judging import Unjudged
from research_rl.verl_plugin.rollout_queue import put_group, rows_of, tell
from research_rl.verl_plugin.trainer import HEALTH

try:
    import transfer_queue as tq
    from verl.utils.config import omega_conf_to_dataclass
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

MEMORY = (
    "memory"  # field that carries a search-free path to the actor, for the likelihood term (see verl_plugin/memorisation.py)
)
log = logging.getLogger(__name__)


@cache
def log_for(directory: str, attempt: float, share: float, max_gb: float | None) -> TrajectoryLog:
    """Return this process's trajectory log."""
    return TrajectoryLog(directory, attempt, share, max_bytes=None if max_gb is None else max_gb * 1e9)


class SearchAgentLoopWorker:
    """A Ray actor. A failure ends the run unless it is an outage that may pass or costs one question only."""

    def __init__(self, config: Any, llm_client: Any) -> None:
        tq.init()
        self.config, self._llm_client = config, llm_client
        self._settings: Settings = settings_of(config)
        self._model = omega_conf_to_dataclass(config.actor_rollout_ref.model)  # verl's, with tokenizer and processor
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps weak references only
        # The first failure that ends the run. The manager asks every worker for it (see `fail_if_failed`); verl only sees that a question
        # failed, and with `sync_refill_failed_groups` tries the next one: for ever.
        self._fatal: Exception | None = None
        self._failed_queries = FailedQueries(self._settings.max_failed_query_share)
        # questions dropped since the last call of `lost_questions`, in training (False) and in validation (True)
        self._lost = {False: 0, True: 0}
        self._unjudged = {False: Unjudged(), True: Unjudged()}

    @cached_property
    def _loop(self) -> SearchAgentLoop:
        tokenizer = self._model.tokenizer
        if self._model.custom_chat_template is not None:
            tokenizer.chat_template = self._model.custom_chat_template
        return SearchAgentLoop(self.config, self._llm_client, tokenizer)

    async def fail_if_failed(self) -> None:
        """Raise the failure that ends the run, if there was one."""
        if self._fatal is not None:
            raise self._fatal

    def turns(self) -> int:
        """Return how many turns this worker has rolled out (see watchdog.py)."""
        return Progress.turns

    async def lost_questions(self, validate: bool = True) -> int:
        """Return how many questions were lost to failed searches: of the validation that has ended, or of training since the last call."""
        lost, self._lost[validate] = self._lost[validate], 0
        return lost

    async def unjudged(self, validate: bool) -> Unjudged:
        """Return the count of answers without a verdict: of the validation that has ended, or of training since the last call."""
        found, self._unjudged[validate] = self._unjudged[validate], Unjudged()
        return found

    async def generate_sequences(self, batch: Any) -> None:
        """Begin to roll out the questions of a batch (a TensorDict of dataset rows), and return. The rollouts go into the queue."""
        validate = bool(batch["validate"]) if "validate" in batch else False
        batch.pop("validate", None)
        for row in rows_of(batch):
            task = asyncio.create_task(self._roll_out(row, validate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _roll_out(self, row: dict[str, Any], validate: bool) -> None:
        """Put all rollouts of a question into the queue, or none, and say which."""
        uid, failures = row["uid"], [] if self._fatal is None else [self._fatal]
        self._failed_queries.questions += 1
        if not failures:
            try:
                await tell(uid, "running", validate)
                failures = await self._group(row, validate)
            except Exception as failure:
                failures = [failure]
            self._note(failures, row)
        self._lost[validate] += bool(failures)
        try:
            await tell(uid, "failure" if failures else "finished", validate)
        except Exception as failure:
            self._note([failure], row)
            await tell(uid, "failure", validate)  # once more: the trainer waits for it

    async def _group(self, row: dict[str, Any], validate: bool) -> list[Exception]:
        """Roll out, score, log and put a question's rollouts; return why it could not, if so."""
        rollout = self.config.actor_rollout_ref.rollout
        size = int(row.pop("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n))  # verl's, for this question alone
        parameters = sampling_of(rollout, validate, greedy=not row.pop("__do_sample__", True))
        loop = self._loop
        rollouts, failures = await settled(loop.run(parameters, row) for _ in range(size))
        if failures:
            return failures
        scored = score(self._settings.load(), rollouts)
        _, failures = await settled(self._finish(*each, row, validate) for each in zip(rollouts, scored, strict=True))
        if failures:
            return failures
        for one, (_, metrics) in zip(rollouts, scored, strict=True):
            self._log(one, metrics, validate)
        await put_group(row, [one.output for one in rollouts], validate, self._model.processor)
        return []

    def _note(self, failures: Sequence[Exception], row: Mapping[str, Any]) -> None:
        """Log why a question is lost, and keep what must end the run."""
        queries = [one for one in failures if isinstance(one, QueryFailedError)]
        for failure in [*queries[:1], *(one for one in failures if not isinstance(one, QueryFailedError))]:
            expected = isinstance(failure, RetrievalError)
            log.error("question %s is lost: %s", row["uid"], failure, exc_info=None if expected else failure)
            try:
                ending = self._ends_the_run(failure, row)
            except Exception as broken:  # a tool that cannot say how long it has been unavailable
                ending = broken
            self._fatal = self._fatal or ending

    def _ends_the_run(self, error: Exception, row: Mapping[str, Any]) -> Exception | None:
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

    async def _finish(self, rollout: FinishedRollout, scored: Scored, row: Mapping[str, Any], validate: bool) -> None:
        """Add to verl's output what is known once the whole group is there."""
        reward, metrics = scored
        settings, output = self._settings, rollout.output
        if rollout.judgement:
            self._unjudged[validate].add(rollout.judgement)
        if settings.memory().mu and not validate:
            output.extra_fields[MEMORY] = memorised = await self._memorise(rollout)
            metrics["memorised"] = float(memorised is not None)
        if not validate:
            group, info = str(row["uid"]), info_of(row)
            health = rollout_health(settings.load(), rollout.trajectory, rollout.golden_answers, reward.score, group, info)
            output.extra_fields[HEALTH] = vars(health)
        output.reward_score = reward.score
        output.extra_fields["reward_extra_info"] = metrics

    def _log(self, rollout: FinishedRollout, metrics: dict[str, float], validate: bool) -> None:
        settings = self._settings
        if not settings.trajectory_dir:
            return
        record = {"validate": validate, **rollout.record, "metrics": metrics, **rollout.trajectory.to_json()}
        if settings.trajectory_logprobs:
            for turn, tokens in zip(record["turns"], turn_tokens(rollout.codec, rollout.trajectory), strict=True):
                turn["tokens"] = tokens
        log_for(settings.trajectory_dir, settings.attempt, settings.trajectory_share, settings.trajectory_max_gb).write(record)

    async def _memorise(self, rollout: FinishedRollout) -> dict[str, Any] | None:
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


async def settled(tasks: Iterable[Coroutine[Any, Any, Any]]) -> tuple[list[Any], list[Exception]]:
    """Await all, also if one fails: return the results of those that did not, and what the others raised."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [one for one in found if isinstance(one, BaseException)]
    failures = [one if isinstance(one, Exception) else RuntimeError(f"a rollout ended with {one!r}") for one in failed]
    return [one for one in found if not isinstance(one, BaseException)], failures


Scored = tuple[Reward, dict[str, float]]


def score(method: Method, rollouts: Sequence[FinishedRollout]) -> list[Scored]:
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
