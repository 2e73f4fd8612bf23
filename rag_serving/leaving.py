"""A client that leaves before it is answered: what is done for it ends."""

from __future__ import annotations

import asyncio
from typing import Any

LOOKED_AFTER_S = 0.05  # seconds; most requests are answered sooner, and watching each would cost a task


class ClientLeft(Exception):
    """Nobody waits for the answer."""


class WhileWaiting:
    """Cancels what the current task does inside `with`, which then raises `ClientLeft`, once `receive` (ASGI) tells that the client left.

    The request's body must have been received.
    """

    def __init__(self, receive: Any) -> None:
        self._receive, self._left = receive, False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(LOOKED_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left:
            self._task.uncancel()
            raise ClientLeft from None
