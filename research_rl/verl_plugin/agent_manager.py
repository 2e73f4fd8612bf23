"""verl's manager of agent loops, which ends a run if the retrieval service stays unavailable."""

from __future__ import annotations

from typing import Any

from research_rl.errors import missing_extra
from research_rl.verl_plugin.agent_worker import SearchAgentLoopWorker
from research_rl.verl_plugin.judging import Unjudged, together

try:
    import ray
    from ray.exceptions import RayTaskError
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


class SearchAgentLoopManager(AgentLoopManagerTQ):
    """Named by `rollout.agent.agent_loop_manager_class`; importing it registers the agent loop in every worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SearchAgentLoopWorker)

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
