"""A client of a running service, for the commands that ask one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import httpx

from rag_serving import ServingError

TIMEOUT_S = 60.0
_NOT_NOW = frozenset({408, 425, 429, 500, 502, 503, 504})
Answer = TypeVar("Answer")


class ServiceError(ServingError):
    """The service refuses, or is of another kind. `told` is what may be said to those who must not learn its address."""

    def __init__(self, message: str, told: str) -> None:
        super().__init__(message)
        self.told = told


class NoAnswerError(ServiceError):
    """The service does not answer, or not now. Asked again later, it may."""


class Client:
    """Asks the service at `url` over kept connections; an asynchronous context manager, to be entered once."""

    def __init__(self, url: str, token: str = "") -> None:
        """`token` is sent as a bearer token, if there is one.

        Raises:
            ServingError: `url` is no address.
        """
        try:
            address = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise ServingError(f"--url is no address ({error}); give one like http://127.0.0.1:8000") from None
        self._address, self._name = str(address), str(address.copy_with(userinfo=b""))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def ask(self, path: str, body: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """POST `body` to a path and return what `read` makes of the JSON that is answered.

        Raises:
            ServiceError: the service does not answer (NoAnswerError, also for 408, 425, 429, 500, 502, 503 and 504), or refuses, in its own
                words; or `read` fails, because it is another kind of service.
        """
        return await self._answer(self._http.post(f"{self._address}{path}", json=body), path, read)

    async def live(self) -> None:
        """Ask whether the service answers, and has the index that its address names.

        Raises:
            ServiceError: as `ask`.
        """
        await self._answer(self._http.get(f"{self._address}/livez"), "/livez", lambda told: told["status"])

    async def _answer(self, asked: Awaitable[httpx.Response], path: str, read: Callable[[Any], Answer]) -> Answer:
        try:
            answer = await asked
            told = answer.json()
            if answer.status_code != 200:
                refused, why = f"refused with {answer.status_code}", f": {told['detail']}"
                if answer.status_code in _NOT_NOW:  # why is about the service, and may name its files and what stands behind it
                    raise NoAnswerError(f"{self._name} {refused}{why}", f"the search service {refused}; it may answer later")
                raise ServiceError(f"{self._name} {refused}{why}", f"the search service {refused}{why}")
            return read(told)
        except ServingError:
            raise
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
            raise NoAnswerError(
                f"{self._name} does not answer ({told}); is it the address of a running service?",
                "the search service does not answer; it may later",
            ) from None
        except (ValueError, LookupError, TypeError):
            wrong = f"is no rag-serving: what it answers is not in the form of {path}"
            raise ServiceError(f"{self._name} {wrong}", f"the search service {wrong}") from None
