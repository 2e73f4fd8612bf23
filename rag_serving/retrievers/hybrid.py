"""Hybrid retrieval by reciprocal rank fusion (Cormack et al., 2009): score(d) = sum over retrievers of 1 / (k0 + rank(d)), rank from 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rag_serving.retrievers.base import Hit, Retriever


class Hybrid(Retriever):
    """Fuses the first `depth` hits of several retrievers. Ties: the better best rank first, then the smaller id."""

    def __init__(self, retrievers: Sequence[Retriever], depth: int = 100, k0: int = 60) -> None:
        self._retrievers, self._depth, self._k0 = list(retrievers), depth, k0
        self.nested_to = (
            depth  # up to it the same hits are fused, whatever k is; the retrievers' own answers need not be nested
        )

    @property
    def size(self) -> int | None:
        return self._retrievers[0].size

    def warm_up(self) -> None:
        for retriever in self._retrievers:
            retriever.warm_up()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        rankings = [retriever.search(queries, max(self._depth, k)) for retriever in self._retrievers]
        return [self._fuse([ranking[i] for ranking in rankings])[:k] for i in range(len(queries))]

    def _fuse(self, rankings: list[list[Hit]]) -> list[Hit]:
        ranks: dict[str, list[int]] = {}
        hits: dict[str, Hit] = {}
        for ranking in rankings:
            for rank, hit in enumerate(ranking, 1):
                name = hit.id
                ranks.setdefault(name, []).append(rank)
                hits[name] = hit
        # fsum: the order of the retrievers must not decide between equals by a rounding
        scores = {passage: math.fsum(1.0 / (self._k0 + rank) for rank in found) for passage, found in ranks.items()}
        order = sorted(scores, key=lambda passage: (-scores[passage], min(ranks[passage]), passage))
        return [hits[passage].scored(scores[passage]) for passage in order]

    def close(self) -> None:
        for retriever in self._retrievers:
            retriever.close()
