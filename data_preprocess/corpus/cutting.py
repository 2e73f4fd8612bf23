"""Documents cut into passages: by words, sentences or tokens, with overlap; or kept as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from research_rl.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from data_preprocess.corpus.documents import Document

UNITS = ("words", "sentences", "tokens", "keep")
T = TypeVar("T")


@dataclass(frozen=True)
class Cutting:
    """How passages are cut. `size` and `overlap` are in units; 100 words are DPR's (Karpukhin et al., 2020), and usual since."""

    unit: str = "words"
    size: int = 100
    overlap: int = 0
    tokenizer: str = ""  # directory or hub id, for tokens
    language: str = "en"  # for sentences

    def check(self) -> None:
        """Refuse what cannot be cut.

        Raises:
            ConfigError: the unit is unknown, the overlap is as long as a passage, or the tokenizer is missing.
        """
        if self.unit not in UNITS:
            raise ConfigError(f"unknown unit {self.unit!r}; choose one of: {', '.join(UNITS)}")
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ConfigError(f"a passage needs size ≥ 1 and 0 ≤ overlap < size, got size {self.size}, overlap {self.overlap}")
        if self.unit == "tokens" and not self.tokenizer:
            raise ConfigError("to cut by tokens, name the tokenizer of the encoder: --tokenizer DIRECTORY_OR_HUB_ID")


def windows(items: Sequence[T], size: int, overlap: int) -> Iterator[Sequence[T]]:
    """Yield neighbouring windows of `size` items that share `overlap`; the last may be shorter, and never lies within the one before."""
    for start in range(0, len(items), size - overlap):
        yield items[start : start + size]
        if start + size >= len(items):
            return


def cutter(cutting: Cutting) -> Callable[[Document], Iterator[str]]:
    """Return the function that gives a document's passages, without title.

    Raises:
        MissingExtraError: the package that finds sentences or tokens is not installed.
    """
    size, overlap = cutting.size, cutting.overlap
    if cutting.unit == "keep":
        return lambda document: iter((document.text,) if document.text.strip() else ())
    if cutting.unit == "words":
        return lambda document: (" ".join(window) for window in windows(document.text.split(), size, overlap))
    if cutting.unit == "sentences":
        sentences = sentence_splitter(cutting.language)
        return lambda document: (
            " ".join(window) for window in windows(document.sentences or sentences(document.text), size, overlap)
        )
    spans = _token_spans(cutting.tokenizer)
    return lambda document: (
        document.text[window[0][0] : window[-1][1]] for window in windows(spans(document.text), size, overlap)
    )


def sentence_splitter(language: str) -> Callable[[str], list[str]]:
    """Return the function that gives a text's sentences, white space squeezed.

    Raises:
        MissingExtraError: sentencex is not installed.
    """
    try:
        from sentencex import segment  # type: ignore[attr-defined]  # a compiled module
    except ModuleNotFoundError as error:
        raise missing_extra("sentencex", "data") from error
    return lambda text: [" ".join(sentence.split()) for sentence in segment(language, text) if sentence.strip()]


def _token_spans(tokenizer: str) -> Callable[[str], list[tuple[int, int]]]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker already
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "data") from error
    encode = AutoTokenizer.from_pretrained(tokenizer, use_fast=True)

    def spans(text: str) -> list[tuple[int, int]]:
        found = encode(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [(start, end) for start, end in found if end > start]

    return spans
