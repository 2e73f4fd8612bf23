"""Several indexes in one process: a service and an engine thread each; they share the limits, and the memory for answers.

A request names its index by the path, /indexes/NAME before any other, or in the body (`/v1/…`). Names come from the settings only: no
request makes a path of the file system or a label of a metric out of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

from rag_serving.retrievers import open_retriever
from rag_serving.service import Load, Refused, Service
from rag_serving.settings import Settings

LOADED_AT_ONCE = 2  # loading an index may take more memory than serving it
_PREFIX = re.compile(r"(/indexes/([^/]*))/.*", re.DOTALL)
_named: ContextVar[str | None] = ContextVar("named_index", default=None)  # by the request's path


def below_root(scope: Mapping[str, Any]) -> str:
    """Return a request's path, below that at which the application is mounted in another one, or stands behind a proxy."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if path.startswith(f"{root}/") else path


class Indexes:
    """The services by name, the default first."""

    def __init__(self, settings: Settings, load: Load = open_retriever) -> None:
        # while others are searched already
        self._loading = ThreadPoolExecutor(max_workers=min(LOADED_AT_ONCE, len(settings.names)), thread_name_prefix="loading")
        self.services = {
            name: Service(
                settings.of(name), load, name, ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"retriever-{name}")
            )
            for name in settings.names
        }
        self._default = settings.names[0]

    def enter(self, scope: Mapping[str, Any]) -> Mapping[str, Any]:
        """Note the index that a request's path names, and return its scope: below the index's path all paths are as they are without."""
        found = _PREFIX.fullmatch(below_root(scope))
        _named.set(found[2] if found else None)
        return {**scope, "root_path": scope.get("root_path", "") + found[1]} if found else scope

    def _named_by_path(self) -> str | None:
        name = _named.get()
        if name is not None:
            self._known(name)
        return name

    def service(self, asked: str | None = None) -> Service:
        """Return what serves this request; `asked` is the name in its body.

        Raises:
            Refused: 404 for an unknown name, 400 where the path names another one.
        """
        named = self._named_by_path()
        if asked is None or asked == named:
            return self.services[named or self._default]
        self._known(asked)
        if named is not None:
            raise Refused(400, "index", f"the path names the index {named!r} and the body {asked!r}; name one")
        return self.services[asked]

    def _known(self, name: str) -> None:
        if name not in self.services:
            raise Refused(404, "index", f"there is no index {name[:100]!r}; there are: {', '.join(self.services)}")

    @property
    def _meant(self) -> dict[str, Service]:
        """The services that this request's path stands for: the one that it names, or all."""
        named = self._named_by_path()
        return self.services if named is None else {named: self.services[named]}

    async def look(self) -> None:
        """Look whether the files of what this request's path stands for are what they were."""
        await asyncio.gather(*(service.look() for service in self._meant.values()))

    @property
    def healthy(self) -> bool:
        """Whether what this request's path stands for is."""
        return all(service.healthy for service in self._meant.values())

    def readiness(self) -> dict[str, Any]:
        """Return the state of loading: the default index's, beside `indexes` where there are several; or that of the one named."""
        told = {name: _state(service) for name, service in self._meant.items()}
        first = next(iter(told.values()))
        return first | {"indexes": told} if len(told) > 1 else first

    def health(self) -> dict[str, Any]:
        """Return what ReSearch's clients expect, and where there are several the state of each index."""
        meant = {name: "healthy" if service.healthy else service.status for name, service in self._meant.items()}
        unwell = [status for status in meant.values() if status != "healthy"]
        told = {
            "status": unwell[0] if unwell else "healthy",
            "retrievers": {"total": len(meant), "available": len(meant) - len(unwell)},
        }
        return told | {"indexes": meant} if len(meant) > 1 else told

    @property
    def settled(self) -> bool:
        """Whether each is ready, or one has failed for good."""
        return self.failed or all(service.settled.is_set() for service in self.services.values())

    @property
    def failed(self) -> bool:
        """Whether one could not be loaded."""
        return any(service.failure is not None for service in self.services.values())

    def start(self) -> None:
        """Load all, `LOADED_AT_ONCE` at a time, in their order; returns at once."""
        for service in self.services.values():
            service.start(self._loading)

    async def reload(self) -> None:
        """Load each anew, `LOADED_AT_ONCE` at a time; see `Service.reload`."""
        # together: one that hangs, in whatever it does, holds up no other; one whose engine hangs comes last, for it warms nothing up
        by_hanging = sorted(self.services.values(), key=lambda service: service.hangs)
        await asyncio.gather(*(service.reload() for service in by_hanging))

    async def stop(self) -> None:
        """Answer what was admitted, then close all."""
        self._loading.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(service.stop() for service in self.services.values()))

    async def unfinished(self, seconds: float) -> list[str]:
        """Wait until no thread of an index works any more, `seconds` at the most; return what is still being done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(service.under_way for service in self.services.values()):
                    await asyncio.sleep(0.02)
        doing = {name: service.under_way for name, service in self.services.items()}
        return [f"index {name}, {what}" for name, what in doing.items() if what]


def _state(service: Service) -> dict[str, Any]:
    opened = service.opened
    return {
        "status": service.status,
        "stage": str(service.damage or service.stage),
        "seconds": round(time.monotonic() - service.started, 1),
        "index_id": opened.index_id if opened else None,
        "engine": opened.engine if opened else None,
        "passages": opened.retriever.size if opened else None,
    }
