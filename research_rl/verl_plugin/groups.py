"""The rollouts of one question: they enter the batch together or not at all, and are scored together.

verl replaces a failed group only if none of its rollouts arrived. In an outage, rollouts that never searched would arrive, and would be
trained on as if they were the whole group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from research_rl.errors import QueryFailedError, RetrievalError

Rollout = TypeVar("Rollout")
Scored = TypeVar("Scored")
Score = Callable[[Sequence[Rollout]], Sequence[Scored]]


class DroppedError(Exception):
    """This rollout does not enter the batch, because another one of its question failed."""


class Group(Generic[Rollout, Scored]):
    """Waits for all rollouts of a question, scores them together, and records which have entered the batch."""

    def __init__(self, size: int, score: Score[Rollout, Scored]) -> None:
        """`score` gets the rollouts in the order of their sessions."""
        self._size, self._score = size, score
        self._arrived: dict[int, Rollout | None] = {}
        self._entered: dict[int, bool] = {}
        self._scored: dict[int, Scored] = {}
        self._failed, self._settled = False, asyncio.Event()

    async def scored(self, session: int, rollout: Rollout) -> Scored:
        """Return the result of `score` for a session's rollout, once the whole group has arrived.

        Raises:
            DroppedError: another session failed.
            Exception: what `score` raised, in the session that arrived last.
        """
        self._arrive(session, rollout)
        await self._settled.wait()
        if self._failed:
            raise DroppedError("dropped, because another rollout of the same question failed")
        return self._scored[session]

    def fail(self, session: int) -> None:
        """Record that a session failed, at whatever point."""
        self._failed = True
        self._arrive(session, None)

    def leave(self, session: int, entered: bool) -> list[int]:
        """Record that a session ended, in the batch or not; return the sessions that must be removed from the batch.

        These are returned to the last session that leaves: all that entered, if any session did not.
        """
        self._entered[session] = entered
        if len(self._entered) < self._size or all(self._entered.values()):
            return []
        self._failed = True
        return sorted(number for number, there in self._entered.items() if there)

    @property
    def failed(self) -> bool:
        """Whether the group is not in the batch."""
        return self._failed

    def _arrive(self, session: int, rollout: Rollout | None) -> None:
        if session in self._arrived:
            return
        self._arrived[session] = rollout
        if len(self._arrived) < self._size:
            return
        try:
            whole = {number: one for number, one in sorted(self._arrived.items()) if one is not None}
            if len(whole) == self._size and not self._failed:
                self._scored = dict(zip(whole, self._score(list(whole.values())), strict=True))
            else:
                self._failed = True
        except BaseException:
            self._failed = True
            raise
        finally:
            self._settled.set()


class FailedQueries:
    """How many questions were dropped because a query of theirs failed while the service answered others."""

    ALWAYS_ALLOWED = 5  # of few questions, a share means nothing

    def __init__(self, most: float) -> None:
        """`most`: the share of the questions that may be dropped."""
        self._most, self.questions, self.failed = most, 0, 0

    def add(self, error: QueryFailedError) -> None:
        """Count one failed question.

        Raises:
            RetrievalError: there are too many.
        """
        self.failed += 1
        if self.failed > max(self.ALWAYS_ALLOWED, self._most * self.questions):
            raise RetrievalError(
                f"{self.failed} failed queries in {self.questions} questions, more than research_rl.max_failed_query_share={self._most:g} "
                f"allows: the dropped questions would no longer be a random choice. The last one: {error}"
            ) from error
