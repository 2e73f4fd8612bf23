"""Many rollouts of many questions over a model's server. Each is logged as it ends, and rollouts in the log are not made again.

The log is JSON lines of ``{"id": question, "n": number of the rollout from 1, …}``. Evaluation, cold start and `select` share it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from research_rl.codec import HFCodec
from research_rl.errors import DataError, missing_extra
from research_rl.files import changed_settings, whole_lines, write_text
from research_rl.inference.context import Fitting
from research_rl.methods.base import Method
from research_rl.metrics import cover_em_substring, cover_em_tokens, exact_match
from research_rl.rollout import Generate, Generation, SearchFunction, rollout
from research_rl.tools.base import Service, Toolbox
from research_rl.types import Budget, Trajectory

Metric = Callable[[str, Sequence[str]], float | bool]
Outcome = dict[str, Any]
ACCEPT: dict[str, Metric] = {
    "em": exact_match,
    "cover_em_tokens": cover_em_tokens,
    "cover_em_substring": cover_em_substring,
}
REDUCED = "reduced_response_tokens"  # in a logged rollout: its budget, if the server's context made it smaller than asked for
# options that may change between two runs over the same log
PER_RUN = frozenset({"out", "command", "run", "config", "model_url", "retrieval_url", "concurrency"})


def acceptance(method: Method, name: str) -> Metric:
    """Return the test of whether an answer is right: a metric by name, or for "method" the method's own (else cover_em_tokens)."""
    return getattr(method, "right", ACCEPT["cover_em_tokens"]) if name == "method" else ACCEPT[name]


def same_sampling(path: Path, options: Mapping[str, str]) -> None:
    """Check that the samples in a directory were made with the same options, and save the options beside them.

    Raises:
        DataError: they differ.
    """
    # an option that an earlier version did not have was not given
    if changed := changed_settings(path, options, dict.fromkeys(options, str(None))):
        raise DataError(f"{path.parent} holds samples made with other options ({changed}): choose another --out")
    write_text(path, json.dumps(dict(options), indent=1))


class Busy:
    """Wraps `generate` and counts the seconds in which at least one of its calls was under way."""

    def __init__(self, generate: Generate) -> None:
        self._generate, self._running, self._since, self._total = generate, 0, 0.0, 0.0

    async def __call__(self, ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
        if not self._running:
            self._since = time.monotonic()
        self._running += 1
        try:
            return await self._generate(ids, most, stop)
        finally:
            self._running -= 1
            if not self._running:
                self._total += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._total + (time.monotonic() - self._since if self._running else 0.0)


async def sample(
    method: Method, codec: HFCodec, questions: Sequence[dict[str, Any]], samples: int, budget: Budget, generate: Generate,
    search: SearchFunction, log: Path, outcome: Callable[[Trajectory, dict[str, Any]], Outcome], concurrency: int = 64,
    enough: Callable[[Outcome], bool] | None = None, served_context: Callable[[], Awaitable[int | None]] | None = None,
    service: Service | None = None,
) -> int:  # fmt: skip  # many parameters
    """Roll out every question until it has `samples` rollouts, or one that is `enough`; log ``{"id", "n", **outcome(trajectory, row)}``.

    Budgets are fitted to the server's context, if it is known. If that makes one smaller, the log also has `reduced_response_tokens`; the
    number of such rollouts is returned. If the log is complete, no server is asked anything.

    `service` is what the method's tools use.

    At most `concurrency` rollouts are under way. Those of one question start side by side (which helps a server with a prefix cache),
    or one after the other if `enough` is given.

    Raises:
        ExceptionGroup: of RetrievalError or GenerationError: a server stays unavailable, or a question's prompt alone fills the context.
            Finished rollouts are in the log.
        DataError: two questions have the same id.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra("tqdm", "eval") from error
    if len({row["id"] for row in questions}) < len(questions):
        raise DataError("two questions have the same id, so that their rollouts could not be distinguished")
    done = read_log(log)
    fitting = Fitting()
    jobs = _jobs(questions, done, samples, enough)
    if (first := next(jobs, None)) is None:
        return 0
    jobs = chain([first], jobs)
    context = await served_context() if served_context else None
    log.parent.mkdir(parents=True, exist_ok=True)
    finished = sum(len(outcomes) for outcomes in done.values())
    with (
        log.open("a", encoding="utf-8", buffering=1) as file,  # line-buffered: a kill loses only rollouts under way
        tqdm(total=len(questions) * samples, initial=finished, unit="rollout", disable=None, smoothing=0.02) as progress,
    ):

        async def worker() -> None:
            for row, numbers in jobs:  # all workers draw from one iterator
                prompt = codec.encode_prompt(method.prompt(row["question"]), method.prefill)
                for position, number in enumerate(numbers):
                    fitted = fitting.fit(budget, context, len(prompt), row["question"])
                    call = Toolbox(method.tools, service) if service else None
                    trajectory = await rollout(method, codec, row["question"], prompt, fitted, generate, search, call)
                    found = outcome(trajectory, row)
                    if fitted != budget:
                        found |= {REDUCED: fitted.response_tokens}
                    file.write(json.dumps({"id": row["id"], "n": number, **found}, ensure_ascii=False) + "\n")
                    progress.update()
                    if enough and enough(found):
                        progress.update(len(numbers) - position - 1)
                        break

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(worker())
    return fitting.reduced


def _jobs(
    questions: Sequence[dict[str, Any]],
    done: Mapping[str, Mapping[int, Outcome]],
    samples: int,
    enough: Callable[[Outcome], bool] | None,
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Yield (question, numbers of rollouts to make one after the other)."""
    for row in questions:
        have = done.get(row["id"], {})
        left = [number for number in range(1, samples + 1) if number not in have]
        if enough:
            if left and not any(enough(outcome) for outcome in have.values()):
                yield row, left
        else:
            yield from ((row, [number]) for number in left)


def read_log(path: Path) -> dict[str, dict[int, Outcome]]:
    """Return the outcomes so far by question and number; an unfinished last line, left by a kill, is removed.

    Raises:
        DataError: a whole line is not a logged rollout.
    """
    found: dict[str, dict[int, Outcome]] = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            row = json.loads(line)
            found.setdefault(row["id"], {})[row["n"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: no logged rollout ({error!r}): remove the line, or choose another --out"
            ) from None
    return found
