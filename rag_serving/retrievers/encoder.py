"""Text to unit vectors through sentence-transformers, with the prefixes and the pooling that a model was trained with.

A model's own files say how it pools (`modules.json`); prefixes they mostly do not say, so E5's and BGE's are known here by the
model's name. Every choice can be overridden. FlashRAG's encoder differs in that it never reads the model's own pooling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag_serving import MissingExtraError, ServingError

POOLING = ("mean", "cls", "lasttoken", "max")


@dataclass(frozen=True)
class Profile:
    """How a family of models wants its input; `pooling` is used where the model's files do not say."""

    query_prefix: str = ""
    passage_prefix: str = ""
    pooling: str = "mean"


# first match on the model's name (folder or hub id) wins; from the model cards
PROFILES: tuple[tuple[str, Profile], ...] = (
    (r"e5-mistral|e5.*instruct", Profile("Instruct: Retrieve passages that answer the question\nQuery: ", "", "lasttoken")),
    (r"(^|[/_-])(multilingual-)?e5([/_-]|$)", Profile("query: ", "passage: ", "mean")),
    (r"bge-m3", Profile("", "", "cls")),
    (r"bge-.*-zh", Profile("为这个句子生成表示以用于检索相关文章：", "", "cls")),
    (r"bge", Profile("Represent this sentence for searching relevant passages: ", "", "cls")),
)


def profile_of(model: str) -> Profile:
    """Return the profile of a model by its name (a folder's path or a hub id)."""
    name = model.rstrip("/").lower()
    return next((profile for pattern, profile in PROFILES if re.search(pattern, name)), Profile())


class Encoder:
    """A bi-encoder; vectors have length 1, so the inner product is the cosine."""

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        device: str = "cpu",
        half: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Load `model` (a local folder or a hub id). `name` stands in for a folder's name that says nothing; None: by the model's name.

        Raises:
            ServingError: there is no such model, or the pooling is unknown.
            MissingExtraError: sentence-transformers is not installed.
        """
        try:
            import sentence_transformers as st
        except ImportError as error:
            raise MissingExtraError(error.name or "sentence-transformers") from error
        if pooling is not None and pooling not in POOLING:
            raise ServingError(f"unknown pooling {pooling!r}; choose one of: {', '.join(POOLING)}")
        known = profile_of(name or model)
        self.query_prefix = known.query_prefix if query_prefix is None else query_prefix
        self.passage_prefix = known.passage_prefix if passage_prefix is None else passage_prefix
        self._batch_size = batch_size
        modules: list[Any] | None = None
        try:
            if pooling is not None or not _says_how_to_pool(model):
                from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

                words = Transformer(model)
                mode: Any = pooling or known.pooling
                modules = [words, Pooling(words.get_embedding_dimension(), mode), Normalize()]
            self._model = st.SentenceTransformer(None if modules else model, modules=modules, device=device)
        except (OSError, ValueError) as error:
            raise ServingError(
                f"no encoder could be loaded from {model!r} ({error}); give a folder that holds one, or a hub id"
            ) from error
        if max_length is not None:
            self._model.max_seq_length = max_length
        if half:
            self._model.half()
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise ServingError(f"{model!r} does not say how long its vectors are")
        self.dimension = int(dimension)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [len(texts), dimension]."""
        return self._encode(texts, self.query_prefix)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [len(texts), dimension]."""
        return self._encode(texts, self.passage_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
        vectors = self._model.encode(
            [prefix + text for text in texts],
            batch_size=self._batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


def _says_how_to_pool(model: str) -> bool:
    folder = Path(model)
    return (folder / "modules.json").is_file() if folder.is_dir() else True  # a hub id: sentence-transformers looks itself
