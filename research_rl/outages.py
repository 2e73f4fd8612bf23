"""Requests to a service that may be unavailable for a while: they are repeated until it answers, or a deadline has passed.

A failure that may pass by itself (`UnavailableError`) is retried with jittered exponential back-off until the deadline. The error that is
raised then distinguishes an outage (`RetrievalError`) from a request that fails while others are answered (`QueryFailedError`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx
import tenacity

from research_rl.errors import QueryFailedError, RetrievalError

FOREIGN = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)  # reading another format raises these
_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")  # headers that no longer hold for what was read
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # of HTTP: asked again later, the server may answer
_Answer = TypeVar("_Answer")


class UnavailableError(Exception):
    """A failure that may pass by itself."""


class UnreachableError(UnavailableError):
    """No connection: nothing listens at the address, or no way leads to it."""


class HttpClient(httpx.AsyncClient):
    """An httpx client for servers that may be broken or hostile.

    It raises httpx's own errors also where a connection is lost as it is made, asks for answers that are not compressed, gives up answers
    of more than `most_bytes`, keeps no cookies, and reads texts as UTF-8 whatever the answer says: some character sets of Python take
    hours for a megabyte, or raise what nobody expects.
    """

    def __init__(self, most_bytes: int, headers: Mapping[str, str] | None = None, **options: Any) -> None:
        """`options`: httpx's."""
        super().__init__(headers={"accept-encoding": "identity", **(headers or {})}, **options)
        self._most_bytes = most_bytes

    async def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Send a request, as httpx does.

        Raises:
            httpx.ReadError: the answer is too large; or httpx's other errors.
        """
        with lost_at_once(httpx.ReadError):
            response = await super().send(request, stream=True, **options)
            self.cookies.clear()
            response.headers["content-type"] = response.headers.get("content-type", "").partition(";")[0]
            return response if stream else await self._whole(response)

    async def _whole(self, response: httpx.Response) -> httpx.Response:
        parts, size = [], 0
        try:
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > self._most_bytes:
                    raise httpx.ReadError(f"an answer of more than {self._most_bytes:,} bytes", request=response.request)
        finally:
            await response.aclose()
        unpacked = [(name, value) for name, value in response.headers.items() if name not in _OF_THE_TRANSFER]
        return httpx.Response(response.status_code, headers=unpacked, content=b"".join(parts), request=response.request)


def whole_pairs(text: str) -> str:
    """Return a text in which each half of a surrogate pair is replaced: JSON can carry one, and nothing can encode it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextlib.contextmanager
def lost_at_once(kind: Callable[[str], Exception]) -> Iterator[None]:
    """Raise an error of `kind` if a connection is lost as it is made: anyio raises AttributeError, for it asks for the peer's name."""
    try:
        yield
    except AttributeError as error:
        if "getpeername" not in str(error):
            raise
        raise kind("the connection was lost as it was made") from error


def longest_wait_s(deadline_s: float, timeout_s: float) -> float:
    """Return how long one call may take: until the deadline, and the one attempt after it."""
    return deadline_s + min(timeout_s, deadline_s)


class Persistence:
    """All requests of this process to one service, so that the failure of one can be distinguished from an outage.

    An outage lasts from the first failure after a success until now (`outage_s`). Time without requests is no outage.
    """

    def __init__(
        self,
        service: str,
        remedy: str,
        deadline_s: float,
        timeout_s: float,
        max_attempts: int,
        unreachable_s: float | None = None,
    ) -> None:
        """`service`: its kind and URL; `remedy`: what to do if it is unavailable; both for messages. `deadline_s`: for one call, retries
        included; after it there is one more attempt, of at most `timeout_s`. `unreachable_s`: how long to retry while no connection was
        ever made; None: until the deadline."""
        self._service, self._remedy = service, remedy
        self._deadline_s, self._last_attempt_s, self._max_attempts = deadline_s, min(timeout_s, deadline_s), max_attempts
        self._unreachable_s, self._reached = unreachable_s, False
        self.answered_before = False
        self._last_success = time.monotonic()
        self._failing_since: float | None = None

    @property
    def outage_s(self) -> float:
        """Seconds since the first failure after the last answer; 0 if the last request was answered."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def _answered(self) -> None:
        self._last_success, self._failing_since = time.monotonic(), None

    def _failed(self, begun: float) -> None:
        if (
            self._failing_since is None
        ):  # the request may have hung while others were answered: only the time since their last answer counts
            self._failing_since = max(begun, self._last_success)

    async def persist(self, ask: Callable[[bool], Awaitable[_Answer]], what: str, which: str) -> _Answer:
        """Call `ask` until there is an answer, or the deadline has passed. The argument of `ask` is whether this is the first attempt.

        `what` names what is asked for, and `which` the individual request, both for messages.

        Raises:
            QueryFailedError: `ask` raised it; or this request fails while others are answered.
            RetrievalError: no answer before the deadline: an outage.
        """
        failure: BaseException | None = None
        attempts, started, absent = 0, time.monotonic(), False
        begun, failed_first = started, None

        async def once() -> _Answer:
            nonlocal attempts, begun, failure, failed_first
            attempts += 1
            begun = time.monotonic()
            try:
                answer = await ask(attempts == 1)
            except UnavailableError as error:
                failure = error
                self._reached |= not isinstance(error, UnreachableError)
                failed_first = failed_first or time.monotonic()
                self._failed(begun)
                raise
            except QueryFailedError:  # a refusal is an answer, too
                self._answered()
                self._reached = True
                raise
            self._answered()
            self.answered_before = self._reached = True
            return answer

        def never_there(state: tenacity.RetryCallState) -> bool:
            nonlocal absent
            limit = self._unreachable_s
            absent = limit is not None and not self._reached and tenacity.stop_before_delay(limit)(state)
            return absent

        try:
            async with asyncio.timeout(self._deadline_s):
                return await tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception_type(UnavailableError),
                    stop=lambda state: state.attempt_number >= self._max_attempts or never_there(state),
                    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
                    reraise=True,
                )(once)
        except TimeoutError:
            failure = failure or TimeoutError("no answer at all")
            self._failed(begun)
            # this machine may have been suspended (a virtual machine that is moved, a process that got no CPU time): try once more
            # before this counts as an outage
            with contextlib.suppress(TimeoutError, UnavailableError):
                async with asyncio.timeout(self._last_attempt_s):
                    return await once()
        except UnavailableError:
            pass
        now = time.monotonic()
        if absent:
            raise RetrievalError(
                f"nothing answers: {self._service} could not be reached in {attempts} attempts within {now - started:.1f} s ({failure}). "
                f"{self._remedy}"
            )
        answers_others = self._last_success > (failed_first or now)
        raise (QueryFailedError if answers_others else RetrievalError)(
            f"{self._service} gave no answer to {what}: "
            f"{attempts} attempts in {now - started:.1f} s (deadline {self._deadline_s:g} s), the last failure was: {failure}. "
            + (f"Others were answered meanwhile; {which}" if answers_others else self._remedy)
        )
