"""Reranking: a model orders the first hits of another retriever anew. Which kind of model it is, its own files say.

A cross-encoder reads query and passage together. A late-interaction model (ColBERT and its successors, as sentence-transformers, PyLate
or Stanford's code save them) makes a vector of every token; a query's score is the sum, over its tokens, of the best product with any
token of the passage (MaxSim, arXiv 2004.12832).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from rag_serving import MissingExtraError, ServingError
from rag_serving.retrievers.base import Hit, Retriever
from rag_serving.retrievers.encoder import model_file

# what sentence-transformers takes a cross-encoder's score from: a head of its own, or the logits of a word
_SCORED = ("ForSequenceClassification", "ForCausalLM")


class Scorer(ABC):
    """A model that says how well passages answer a query."""

    @abstractmethod
    def __init__(self, model: str, device: str, batch_size: int) -> None:
        """Load it."""

    @abstractmethod
    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return, for each query, one score per passage of its own list; there is at least one passage."""


class CrossEncoderScorer(Scorer):
    """Query and passage are read together."""

    def __init__(self, model: str, device: str, batch_size: int) -> None:
        from sentence_transformers import CrossEncoder

        self._model, self._batch_size = CrossEncoder(model, num_labels=1, device=device), batch_size

    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        pairs = [(query, passage) for query, own in zip(queries, passages, strict=True) for passage in own]
        found = iter(self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False).tolist())
        return [[float(next(found)) for _ in own] for own in passages]


class LateInteractionScorer(Scorer):
    """Query and passage are encoded apart; their tokens' vectors are compared. A passage that several queries found is encoded once."""

    def __init__(self, model: str, device: str, batch_size: int) -> None:
        from sentence_transformers import MultiVectorEncoder

        self._model = MultiVectorEncoder(model, device=device)
        self._options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}

    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        distinct = list(dict.fromkeys(passage for own in passages for passage in own))
        encoded = dict(zip(distinct, self._model.encode_document(distinct, **self._options), strict=True))
        asked = self._model.encode_query(list(queries), **self._options)
        return [
            self._model.similarity([vectors], [encoded[passage] for passage in own])[0].tolist() if own else []
            for vectors, own in zip(asked, passages, strict=True)
        ]


class Reranked(Retriever):
    """The first `depth` hits of `retriever`, ordered by a model's score; equal scores keep their order."""

    def __init__(self, retriever: Retriever, model: str, depth: int = 50, device: str = "cpu", batch_size: int = 64) -> None:
        """Load `model` (a local folder or a hub id).

        Raises:
            ServingError: there is no such model, or it is no reranker.
            MissingExtraError: sentence-transformers is not installed.
        """
        try:
            self._scorer = _scorer(model)(model, device, batch_size)
        except ServingError:
            raise
        except ImportError as error:
            raise MissingExtraError(error.name or "sentence-transformers") from error
        except (OSError, ValueError) as error:
            raise ServingError(
                f"no reranker could be loaded from {model!r} ({error}); give a folder that holds one, or a hub id"
            ) from error
        self._retriever, self._depth = retriever, depth
        self.nested_to = depth  # up to it the same hits are reranked, whatever k is

    @property
    def size(self) -> int | None:
        return self._retriever.size

    def warm_up(self) -> None:
        self._retriever.warm_up()
        self._scorer.scores(["warm up"], [["warm up"]])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = self._retriever.search(queries, max(self._depth, k))
        if not any(found):
            return found
        scores = self._scorer.scores(queries, [[hit.contents for hit in hits] for hits in found])
        reranked = []
        for hits, values in zip(found, scores, strict=True):
            scored = [hit.scored(value) for hit, value in zip(hits, values, strict=True)]
            reranked.append(sorted(scored, key=lambda hit: -hit.score)[:k])
        return reranked

    def close(self) -> None:
        self._retriever.close()


def _scorer(model: str) -> type[Scorer]:
    """Return what runs a model, by the kind that its files name.

    Raises:
        ServingError: it scores no passages. Loaded as a cross-encoder, it would get a head of random numbers.
    """
    kind = model_file(model, "config_sentence_transformers.json").get("model_type")
    config = model_file(model, "config.json")
    architectures = config.get("architectures") or []
    if kind in ("MultiVectorEncoder", "ColBERT") or "HF_ColBERT" in architectures:
        return LateInteractionScorer
    headless = kind is None and config and not any(name.endswith(_SCORED) for name in architectures)
    if kind not in (None, "CrossEncoder") or headless:
        named = kind or ", ".join(architectures) or "of no named architecture"
        raise ServingError(
            f"{model!r} ({named}) gives no scores, so it cannot rerank; give a cross-encoder or a late-interaction model (ColBERT)"
        )
    return CrossEncoderScorer
