"""A trained search agent as a FlashRAG pipeline, to run it on FlashRAG's data sets, with its evaluator, beside its other pipelines.

    from flashrag.config import Config
    from flashrag.utils import get_dataset
    config = Config("my_config.yaml")          # data_dir, dataset_name, metrics, save_dir; no retriever or generator is needed
    agent = SearchAgent("http://localhost:9000/v1", "http://localhost:8000")
    SearchAgentPipeline(config, agent).run(get_dataset(config)["dev"])

FlashRAG's evaluator prints the error of a metric and leaves the metric out; here that is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from research_rl.errors import DataError, missing_extra
from research_rl.inference.agent import Answered, SearchAgent

try:
    from flashrag.pipeline import BasicPipeline
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "flashrag-dev", "flashrag") from error


class SearchAgentPipeline(BasicPipeline):
    """Rolls out every question of a FlashRAG data set with a `SearchAgent`."""

    def __init__(self, config: Any, agent: SearchAgent, concurrency: int = 64) -> None:
        """`config` is FlashRAG's. The prompt comes from the agent's method; FlashRAG's template is not used."""
        # any template will do: without one, FlashRAG would load a model's tokenizer for its own
        super().__init__(config, prompt_template=agent.method)
        self._agent, self._concurrency = agent, concurrency

    def run(self, dataset: Any, do_eval: bool = True, pred_process_fun: Callable[[Any], Any] | None = None) -> Any:
        """Answer every question, set the outputs `pred`, `response`, `response_budget` (tokens), `searches` and `retrieval_result`, and
        let FlashRAG evaluate them.

        Raises:
            RetrievalError, GenerationError: a server is unavailable.
            DataError: FlashRAG could not compute a metric of its configuration.
        """
        told = asyncio.run(self._answer(list(dataset.question)))
        dataset.update_output("pred", [one.answer or "" for one in told])
        dataset.update_output("response", [one.trajectory.text for one in told])
        dataset.update_output("response_budget", [one.budget.response_tokens for one in told])
        dataset.update_output("searches", [one.searches for one in told])
        dataset.update_output(
            "retrieval_result", [[{"id": passage.id, "contents": passage.contents} for passage in one.passages] for one in told]
        )
        dataset = self.evaluate(dataset, do_eval=do_eval, pred_process_fun=pred_process_fun)
        if do_eval:
            self._all_computed(dataset)
        return dataset

    async def _answer(self, questions: list[str]) -> list[Answered]:
        gate = asyncio.Semaphore(self._concurrency)
        async with self._agent:

            async def one(question: str) -> Answered:
                async with gate:
                    return await self._agent.aanswer(question)

            try:
                async with asyncio.TaskGroup() as tasks:
                    running = [tasks.create_task(one(question)) for question in questions]
            except ExceptionGroup as group:  # the first error is enough
                raise group.exceptions[0] from None
        return [task.result() for task in running]

    def _all_computed(self, dataset: Any) -> None:
        for item in dataset:
            if missing := [name for name in self.evaluator.metrics if name not in item.output.get("metric_score", {})]:
                raise DataError(
                    f"FlashRAG could not compute {', '.join(missing)} (its error is printed above): question {item.id}"
                )
