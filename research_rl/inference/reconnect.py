"""How the clients of the policy's server treat a lost connection: they retry, and then raise one error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import httpx
import tenacity

from research_rl.errors import GenerationError

ATTEMPTS = 7  # the waits between them add up to 11 s, 12 with the jitter
LOST = (httpx.NetworkError, httpx.RemoteProtocolError)  # refused, reset, or closed without a whole answer; not a time-out
# Servers close idle connections (uvicorn after 5 s), which loses a request sent at that moment. So do not keep them that long.
LIMITS = httpx.Limits(keepalive_expiry=2.0)

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Reconnecting:
    """Sends a request again when its connection is lost, at most `ATTEMPTS` times in all; counts the retries. Any thread may use it.

    Sampling again is harmless: nobody saw the answer that was lost.
    """

    def __init__(self) -> None:
        self.retries = 0
        self._lock = threading.Lock()

    def __call__(self, send: Callable[Given, Found]) -> Callable[Given, Found]:
        """Return `send`, a function or a coroutine function, with retries; after the last one it raises the connection's error."""
        return tenacity.retry(
            retry=tenacity.retry_if_exception_type(LOST),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=0.2, max=5.0) + tenacity.wait_random(0, 0.2),
            before_sleep=self._count,
            reraise=True,
        )(send)

    def _count(self, state: tenacity.RetryCallState) -> None:
        with self._lock:
            self.retries += 1


def gone(url: str, error: httpx.RequestError) -> GenerationError:
    """Return the error for a server that could not be reached; `url` ends in /v1."""
    return GenerationError(
        f"no model server at {url}: {type(error).__name__} {error}. Is it running? Try: curl {url.rstrip('/')}/models"
    )
