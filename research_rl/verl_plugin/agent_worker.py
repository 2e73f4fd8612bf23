"""verl's worker of agent loops, with whole groups: which rollouts enter the batch, with which rewards, and which failure ends the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
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
from research_rl.verl_plugin.agent_loop import ROLLOUT, FinishedRollout, Progress, info_of, retrieval_client
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.groups import DroppedError, FailedQueries, Group
from research_rl.verl_plugin.judging import Unjudged
from research_rl.verl_plugin.trainer import HEALTH

try:
    import transfer_queue as tq
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error

MEMORY = (
    "memory"  # field that carries a search-free path to the actor, for the likelihood term (see verl_plugin/memorisation.py)
)


@cache
def log_for(directory: str, attempt: float, share: float, max_gb: float | None) -> TrajectoryLog:
    """Return this process's trajectory log."""
    return TrajectoryLog(directory, attempt, share, max_bytes=None if max_gb is None else max_gb * 1e9)


class Fatal:
    """The first unrecoverable failure of this process. The manager asks every process for it, and ends the run (see `fail_if_failed`).

    verl only logs what a loop raises and, with `sync_refill_failed_groups`, tries the next question: for ever, unless the run is ended.
    """

    error: Exception | None = None


_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # the class under verl's @ray.remote


class SearchAgentLoopWorker(_Worker):
    """verl's worker, with whole groups. A failure ends the run unless it is an outage that may pass or costs one question only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: Settings = settings_of(self.config)
        self._groups: dict[str, Group[FinishedRollout, _Scored]] = {}
        self._failed_queries = FailedQueries(self._settings.max_failed_query_share)
        # questions dropped since the last call of `lost_questions`, in training (False) and in validation (True)
        self._lost = {False: 0, True: 0}
        self._unjudged = {False: Unjudged(), True: Unjudged()}

    async def fail_if_failed(self) -> None:
        """Raise the failure that ends the run, if there was one."""
        if Fatal.error is not None:
            raise Fatal.error

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
                Fatal.error = Fatal.error or self._fatal(error, kwargs)
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
        rollout: FinishedRollout = output.extra_fields.pop(ROLLOUT)
        reward, metrics = await self._groups[str(kwargs["uid"])].scored(kwargs["session_id"], rollout)
        settings = self._settings
        if rollout.judgement:
            self._unjudged[bool(validate)].add(rollout.judgement)
        if settings.memory().mu and not validate:
            output.extra_fields[MEMORY] = memorised = await self._memorise(rollout)
            metrics["memorised"] = float(memorised is not None)
        if not validate:
            group, info = str(kwargs["uid"]), info_of(kwargs)
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


_Scored = tuple[Reward, dict[str, float]]


def _score(method: Method, rollouts: Sequence[FinishedRollout]) -> list[_Scored]:
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
