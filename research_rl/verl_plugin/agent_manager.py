"""The manager of agent loops that verl's trainer asks for rollouts. It ends the run if the retrieval service stays unavailable.

verl leaves this class to its users (`TaskRunnerV1.init_agent_loop_manager`): it has `create` and `generate_sequences`, and puts rollouts
into the TransferQueue. So it inherits nothing of verl's, which may change.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any
from uuid import uuid4

from research_rl.errors import ConfigError, missing_extra
from research_rl.verl_plugin.agent_worker import SearchAgentLoopWorker
from research_rl.verl_plugin.judging import Unjudged, together

try:
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


def plugin_is_loaded() -> bool:
    """Return whether verl has loaded our entry point; it hides a plugin that fails."""
    from verl.utils.config import validate_config

    return validate_config.__module__ == "research_rl.verl_plugin"


class SearchAgentLoopManager:
    """Named by `rollout.agent.agent_loop_manager_class`."""

    def __init__(self, agent_loop_workers: list[Any]) -> None:
        """`agent_loop_workers`: Ray's handles of some SearchAgentLoopWorker."""
        self.agent_loop_workers = agent_loop_workers

    @classmethod
    def create(cls, config: Any, llm_client: Any, teacher_client: Any = None, reward_loop_worker_handles: Any = None) -> Any:
        """Start `rollout.agent.num_workers` workers, in turn on every node, and return their manager.

        Rewards are the method's, and there is no teacher (the doctor refuses distillation), so the last two arguments are not used.

        Raises:
            ConfigError: no node has a CPU, or verl has not loaded the plugin, so that nothing was checked.
        """
        if not plugin_is_loaded():
            raise ConfigError(
                "verl has not loaded the plugin research_rl, so nothing was checked, and health and manifests would be missing. Unset "
                "VERL_USE_EXTERNAL_PLUGINS on every node, and see what `research-rl doctor` says of the plugin"
            )
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        if not nodes:
            raise ConfigError("no node of the Ray cluster has a CPU for the workers that roll out; start one with --num-cpus")
        actor = ray.remote(SearchAgentLoopWorker)
        return cls(
            [
                actor.options(
                    name=f"agent_loop_worker_{number}_{uuid4().hex[:8]}",
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=True),
                ).remote(config, llm_client)
                for number, node in zip(range(config.actor_rollout_ref.rollout.agent.num_workers), cycle(nodes), strict=False)
            ]
        )

    def generate_sequences(self, prompts: Any) -> None:
        """Hand out a batch of questions (a TensorDict) to the workers, without waiting for the rollouts, which they put into the queue.

        Raises:
            Exception: the failure that ends the run (see `fail_if_failed`).
        """
        self.fail_if_failed()
        shares = prompts.chunk(len(self.agent_loop_workers))
        ray.get(
            [
                worker.generate_sequences.remote(share)
                for worker, share in zip(self.agent_loop_workers, shares, strict=False)  # a small batch has fewer shares
            ]
        )

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
