"""Checks the retrieval services of a run: ready, with the right index, and fast enough for its number of simultaneous searches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from research_rl.errors import ConfigError, QueryFailedError, RetrievalError, WrongServiceError
from research_rl.inference.protocol import MANIFEST
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.verl_plugin.doctor.finding import Finding, check, error, of_mistake, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.manifest import index_of
from research_rl.verl_plugin.same_index import index_to_fix

SILENT = "silent services"  # the key of `Setup.measured` for their addresses: no other check need wait for them
_FIRST_S, _MEASURED_S = 3.0, 1.0  # seconds for a single first search; then for as many searches at once as in the run
_SLOW_S, _LONG_WAIT_S = 2.0, 120.0  # seconds that cause a warning: 95th percentile of a search; all searches of a step
_SEARCHES = 2  # assumed per rollout if the recipe has no limit


@check("service", "the services that the run needs answer", "settings")
def service(setup: Setup) -> Iterator[Finding]:
    """Ask each service whether it is ready, and then search for the run's own questions."""
    settings = setup.settings
    assert settings is not None
    if (memory := settings.memory()).mu and memory.rewriter.startswith("http"):
        ask_health(memory.rewriter, "/models", "rewriter (research_rl.memorisation.rewriter)")
    for url in settings.retrieval_urls():
        try:
            ask_health(url)
        except RetrievalError as mistake:
            setup.measured.setdefault(SILENT, set()).add(url)
            yield of_mistake(mistake)
            continue
        yield from _index(url, setup)
        if url not in setup.measured:
            setup.measured[url] = list(_speed(url, setup))
        yield from setup.measured[url]
    try:
        index_to_fix(setup.config, settings)
    except ConfigError as mistake:
        yield of_mistake(mistake)


def ask_health(url: str, path: str = "/health", name: str = "retrieval service") -> None:
    """Send a request. Any HTTP answer but a 5xx is accepted, because other retrieval servers may not have this path.

    Raises:
        RetrievalError: no answer, or the service is not ready.
        ConfigError: a server that is not a retrieval service gives no answer.
    """
    try:
        status = httpx.get(f"{url.rstrip('/')}{path}", timeout=10).status_code
    except httpx.RequestError as failure:
        if name != "retrieval service":
            raise ConfigError(f"no {name} at {url} ({failure})") from failure
        raise RetrievalError(
            f"no retrieval service at {url} ({failure}). Start one: rag-serving serve --index DIR --port PORT, and set RETRIEVAL_URL"
        ) from failure
    if status >= 500:
        raise RetrievalError(f"the {name} at {url} is not ready (HTTP {status}); wait until {path} answers with 200")


def _index(url: str, setup: Setup) -> Iterator[Finding]:
    """Compare a service's index with the one that the starting model was trained over."""
    folder = Path(setup.model_path)
    wanted = _indexes(folder / MANIFEST).get(url)
    if wanted and (found := index_of(url)) and found != wanted:
        yield warning(
            f"{url} should serve index {wanted}, over which {folder} was trained",
            found,
            "Serve that index; or go on, if another corpus is meant",
        )


def _indexes(manifest: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads(manifest.read_text(encoding="utf-8")).get("indexes") or {}
    return {}


def _speed(url: str, setup: Setup) -> Iterator[Finding]:
    """Search for `_MEASURED_S` seconds as a step does, for the run's own questions."""
    settings, config = setup.settings, setup.config
    assert settings is not None
    options = next(found for source in _sources(setup) if (found := settings.retrieval_for(source)).address == url)
    rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    at_once = min(rollouts, options.max_connections)
    try:
        times, seconds = asyncio.run(_measure(options, setup.questions or ["Who was the first?"], settings.top_k, at_once))
    except WrongServiceError as mistake:
        yield error(str(mistake), "", "Correct research_rl.retrieval.url, or RETRIEVAL_TOKEN", WrongServiceError)
        return
    if not times:
        yield warning(
            f"{url} should answer a search while the run starts",
            "no answer",
            "Look at its log",
        )
        return
    times.sort()
    middle, high = times[len(times) // 2], times[len(times) * 95 // 100]
    searches = rollouts * (_SEARCHES if settings.max_searches is None else settings.max_searches)
    wait = searches * seconds / len(times)
    told = (
        f"{url}: {at_once} searches at once take {middle * 1000:.0f} ms (median) and {high * 1000:.0f} ms (95th percentile), this process "
        f"included; {searches:,} searches of a step of {rollouts:,} rollouts take {wait:.1f} s, if nothing else uses the service"
    )
    if high >= _SLOW_S or wait >= _LONG_WAIT_S:
        yield warning(told, "", "More workers (rag-serving serve --workers), a faster retriever, or fewer rollouts at once")
    else:
        yield ok(told)


def _sources(setup: Setup) -> list[str]:
    return ["", *(setup.section["retrieval"].get("url_by_data_source") or {})]


async def _measure(options: RetrievalSettings, questions: Sequence[str], top_k: int, at_once: int) -> tuple[list[float], float]:
    """Return the seconds of each search (for those under way at the end: so far), and of all together; empty if none was answered.

    Raises:
        WrongServiceError: raised by a first search, which is not timed (see `RetrievalClient.search`).
    """
    times: list[float] = []
    under_way: dict[int, float] = {}
    numbers = count()

    async def searches(client: RetrievalClient) -> None:
        while True:
            number = next(numbers)
            under_way[number] = time.perf_counter()
            try:
                await client.search([questions[number % len(questions)]], top_k)
            except QueryFailedError:  # an answer, too
                pass
            except RetrievalError:
                return
            times.append(time.perf_counter() - under_way.pop(number))

    async with RetrievalClient(replace(options, timeout_s=_FIRST_S, deadline_s=_FIRST_S)) as client:
        try:
            await client.search([questions[0]], top_k)
        except WrongServiceError:
            raise
        except RetrievalError:
            return [], 0.0
        started = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MEASURED_S), asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(searches(client))
        ended = time.perf_counter()
    return (times + [ended - begun for begun in under_way.values()] if times else []), ended - started
