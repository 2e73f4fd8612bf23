"""Asking a service that may be gone for a while: until it answers, or a deadline has passed.

A failure that time may heal (`UnavailableError`) is tried again with jittered exponential back-off until the deadline. What is given up
then is told apart: an outage (`RetrievalError`), or a request that fails while others are answered (`QueryFailedError`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from research_rl.errors import QueryFailedError, RetrievalError

_Answer = TypeVar("_Answer")


class UnavailableError(Exception):
    """A failure that time may heal."""


def longest_wait_s(deadline_s: float, timeout_s: float) -> float:
    """Return how long one call may take: until the deadline, and the one attempt after it."""
    return deadline_s + min(timeout_s, deadline_s)


class Persistence:
    """All requests of this process to one service, so that a failure of one can be told from an outage.

    How long an outage lasts is told by `outage_s`: from the first failure after a success to now. Silence alone, while nobody asks, is
    none.
    """

    def __init__(self, service: str, remedy: str, deadline_s: float, timeout_s: float, max_attempts: int) -> None:
        """`service`: what it is, and its URL; `remedy`: what to do when it is gone; both for messages. `deadline_s`: of one call, retries
        included; then it is asked once more, for at most `timeout_s`."""
        self._service, self._remedy = service, remedy
        self._deadline_s, self._last_attempt_s, self._max_attempts = deadline_s, min(timeout_s, deadline_s), max_attempts
        self.answered_before = False
        self._last_success = time.monotonic()
        self._failing_since: float | None = None

    @property
    def outage_s(self) -> float:
        """Seconds since the first of the failures that no answer has followed; 0 if the last request was answered."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def _answered(self) -> None:
        self._last_success, self._failing_since = time.monotonic(), None

    def _failed(self, begun: float) -> None:
        if self._failing_since is None:  # a request that hung while others were answered tells of the time since
            self._failing_since = max(begun, self._last_success)

    async def persist(self, ask: Callable[[bool], Awaitable[_Answer]], what: str, which: str) -> _Answer:
        """Ask until there is an answer, or the deadline has passed. `ask` is told whether it is the first attempt; `what` is asked for, and
        `which` of many it is, for messages.

        Raises:
            QueryFailedError: `ask` raised it; or this fails while others are answered.
            RetrievalError: no answer before the deadline: an outage.
        """
        failure: BaseException | None = None
        attempts, started = 0, time.monotonic()
        begun, failed_first = started, None

        async def once() -> _Answer:
            nonlocal attempts, begun, failure, failed_first
            attempts += 1
            begun = time.monotonic()
            try:
                answer = await ask(attempts == 1)
            except UnavailableError as error:
                failure = error
                failed_first = failed_first or time.monotonic()
                self._failed(begun)
                raise
            except QueryFailedError:  # a refusal is an answer, too
                self._answered()
                raise
            self._answered()
            self.answered_before = True
            return answer

        try:
            async with asyncio.timeout(self._deadline_s):
                return await tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception_type(UnavailableError),
                    stop=tenacity.stop_after_attempt(self._max_attempts),
                    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
                    reraise=True,
                )(once)
        except TimeoutError:
            failure = failure or TimeoutError("no answer at all")
            self._failed(begun)
            # this machine may have stood still (a virtual machine that is moved, a process that got no processor): ask once more before
            # it is called an outage
            with contextlib.suppress(TimeoutError, UnavailableError):
                async with asyncio.timeout(self._last_attempt_s):
                    return await once()
        except UnavailableError:
            pass
        now = time.monotonic()
        answers_others = self._last_success > (failed_first or now)
        raise (QueryFailedError if answers_others else RetrievalError)(
            f"{self._service} gave no answer to {what}: "
            f"{attempts} attempts in {now - started:.1f} s (deadline {self._deadline_s:g} s), the last failure was: {failure}. "
            + (f"Others were answered meanwhile; {which}" if answers_others else self._remedy)
        )
