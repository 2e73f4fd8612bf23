"""Text to unit vectors through sentence-transformers, with the prefixes and the pooling that a model was trained with.

Most models of today say in their own files how they pool (`modules.json`) and what goes before queries and passages (the prompts in
`config_sentence_transformers.json`); that holds. For older ones it is known here by their name. Every choice can be overridden.
FlashRAG's encoder differs in that it never reads the model's own pooling.
"""

from __future__ import annotations

import json
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
    """How a family of models wants its input, where the model's own files do not say."""

    query_prefix: str = ""
    passage_prefix: str = ""
    pooling: str = "mean"
    normalize: bool = True


_PASSAGES_FOR = "Represent this sentence for searching relevant passages: "
# first match on the last part of the model's name (folder or hub id) wins; from the model cards
PROFILES: tuple[tuple[str, Profile], ...] = (
    (r"e5-mistral|e5.*instruct", Profile("Instruct: Retrieve passages that answer the question\nQuery: ", "", "lasttoken")),
    (r"(^|[_-])(multilingual-)?e5([_-]|$)", Profile("query: ", "passage: ", "mean")),
    (r"bge-.*gemma", Profile("<instruct>Retrieve passages that answer the question\n<query>", "", "lasttoken")),
    (r"bge-m3", Profile("", "", "cls")),
    (r"bge-.*-zh", Profile("为这个句子生成表示以用于检索相关文章：", "", "cls")),
    (r"bge", Profile(_PASSAGES_FOR, "", "cls")),
    (r"mxbai-embed", Profile(_PASSAGES_FOR, "", "cls")),
    (r"arctic-embed-.*v2", Profile("query: ", "", "cls")),
    (r"arctic-embed", Profile(_PASSAGES_FOR, "", "cls")),
    (r"nomic-embed", Profile("search_query: ", "search_document: ", "mean")),
    (r"embeddinggemma", Profile("task: search result | query: ", "title: none | text: ", "mean")),
    (
        r"qwen3-embedding",
        Profile(
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:", "", "lasttoken"
        ),
    ),
    (
        r"gte-.*qwen",
        Profile(
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ", "", "lasttoken"
        ),
    ),
    (r"gte-.*-en-v1\.5|gte-multilingual|gte-modernbert", Profile("", "", "cls")),
    (r"contriever", Profile("", "", "mean", normalize=False)),
    (r"dpr-(ctx|question)_encoder", Profile("", "", "cls", normalize=False)),
)


def profile_of(model: str) -> Profile:
    """Return the profile of a model by the last part of its name (a folder's path or a hub id)."""
    name = model.rstrip("/").lower().rsplit("/", 1)[-1]
    return next((profile for pattern, profile in PROFILES if re.search(pattern, name)), Profile())


class Encoder:
    """A bi-encoder. Vectors have length 1, so that the inner product is the cosine, unless the model was trained without (Contriever)."""

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
        """Load `model` (a local folder or a hub id). `name` stands in for a folder's name that says nothing.

        Prefixes and pooling that are None follow the model's own files, and where those are silent its name.

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
        self._batch_size, self.normalize = batch_size, known.normalize
        self.model = model
        self._options = {
            "name": name,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
            "max_length": max_length,
            "device": device,
            "half": half,
            "batch_size": batch_size,
        }
        modules: list[Any] | None = None
        # transformers would give a passage encoder the class of the question encoder, and random weights
        if model_file(model, "config.json").get("model_type") == "dpr":
            raise ServingError(
                f"{model!r} is in the form of Facebook's DPR; give the same model in the form of sentence-transformers, for example "
                "sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base to build, and …-question_encoder-… to serve"
            )
        try:
            if pooling is not None or not _says_how_to_pool(model):
                from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

                words = Transformer(model)
                mode: Any = pooling or known.pooling
                modules = [words, Pooling(words.get_embedding_dimension(), mode), *([Normalize()] if self.normalize else [])]
            self._model = st.SentenceTransformer(None if modules else model, modules=modules, device=device)
        except (OSError, ValueError) as error:
            raise ServingError(
                f"no encoder could be loaded from {model!r} ({error}); give a folder that holds one, or a hub id"
            ) from error
        own = _own_prefixes(self._model)
        prefixes = own if any(own) else (known.query_prefix, known.passage_prefix)
        self.query_prefix = prefixes[0] if query_prefix is None else query_prefix
        self.passage_prefix = prefixes[1] if passage_prefix is None else passage_prefix
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
        return self._vectors(self._model.encode_query, texts, self.query_prefix)

    def passages(self, texts: Sequence[str], prefix: str | None = None) -> np.ndarray:
        """Return float32 [len(texts), dimension]; `prefix` in the place of the encoder's own."""
        return self._vectors(self._model.encode_document, texts, self.passage_prefix if prefix is None else prefix)

    def pooled(self, pooling: str) -> Encoder:
        """Return the same encoder with another pooling."""
        return Encoder(self.model, pooling=pooling, **self._options)

    def _vectors(self, encode: Any, texts: Sequence[str], prefix: str) -> np.ndarray:
        vectors = encode(
            list(texts),
            prompt=prefix,
            batch_size=self._batch_size,
            normalize_embeddings=self.normalize,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


def _own_prefixes(model: Any) -> tuple[str, str]:
    """Return what the model's own files put before queries and passages, "" where they do not say."""
    prompts = {name: text for name, text in (model.prompts or {}).items() if text}
    passage = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
    return prompts.get("query", ""), passage


def model_file(model: str, name: str) -> dict[str, Any]:
    """Return a JSON file of a model (a folder or hub id); empty if there is none to be had: loading the model tells what is wrong."""
    from sentence_transformers.util.file_io import load_file_path

    try:
        path = load_file_path(model, name)
        told = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _says_how_to_pool(model: str) -> bool:
    folder = Path(model)
    return (folder / "modules.json").is_file() if folder.is_dir() else True  # a hub id: sentence-transformers looks itself
