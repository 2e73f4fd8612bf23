"""How many questions are lost to queries that fail alone, and when they are too many."""

from __future__ import annotations

from research_rl.errors import QueryFailedError, RetrievalError


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
