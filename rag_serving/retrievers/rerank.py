"""Reranking: a cross-encoder reads query and passage together and orders the first hits of another retriever anew."""

from __future__ import annotations

from collections.abc import Sequence

from rag_serving import MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever


class Reranked(Retriever):
    """The first `depth` hits of `retriever`, ordered by a cross-encoder's score; equal scores keep their order."""

    def __init__(self, retriever: Retriever, model: str, depth: int = 50, device: str = "cpu", batch_size: int = 64) -> None:
        """Load `model` (a local folder or a hub id).

        Raises:
            ServingError: there is no such model.
            MissingExtraError: sentence-transformers is not installed.
        """
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise MissingExtraError(error.name or "sentence-transformers") from error
        try:
            self._model = CrossEncoder(model, num_labels=1, device=device)
        except (OSError, ValueError) as error:
            raise ServingError(
                f"no cross-encoder could be loaded from {model!r} ({error}); give a folder that holds one, or a hub id"
            ) from error
        self._retriever, self._depth, self._batch_size = retriever, depth, batch_size
        self.nested_to = depth  # up to it the same hits are reranked, whatever k is

    @property
    def size(self) -> int | None:
        return self._retriever.size

    def warm_up(self) -> None:
        self._retriever.warm_up()
        self._model.predict([("warm up", "warm up")], show_progress_bar=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = self._retriever.search(queries, max(self._depth, k))
        pairs = [(query, hit.contents) for query, hits in zip(queries, found, strict=True) for hit in hits]
        if not pairs:
            return found
        scores = iter(self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False).tolist())
        reranked = []
        for hits in found:
            scored = [hit.scored(float(next(scores))) for hit in hits]
            reranked.append(sorted(scored, key=lambda hit: -hit.score)[:k])
        return reranked

    def close(self) -> None:
        self._retriever.close()
