"""A Qwen2 tokenizer (byte-level BPE) whose vocabulary is the world's words, so that a trajectory is 150 tokens rather than 800.

Merges are learnt until every word of the world is one token; the method's tags are added tokens. Any other text falls back to bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

EOS = "<|endoftext|>"


def build_tokenizer(texts: Iterable[str], tags: Iterable[str]) -> Qwen2Tokenizer:
    """Return a tokenizer in which every word of `texts`, with and without a space before it, and every tag is one token."""
    texts = list(texts)
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    backend = Qwen2Tokenizer().backend_tokenizer  # with Qwen2's normaliser and pre-tokeniser
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, special_tokens=[EOS], show_progress=False, initial_alphabet=sorted(ByteLevel.alphabet()),
    )  # fmt: skip  # many arguments
    backend.train_from_iterator([*words, *(f" {word}" for word in words), *_punctuation(texts)], trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])  # type: ignore[arg-type]  # pairs of texts
    added: Any = [AddedToken(tag, normalized=False, special=False) for tag in dict.fromkeys(tags)]
    tokenizer.add_tokens(added)
    return tokenizer


def _punctuation(texts: list[str]) -> list[str]:
    """Return the runs of punctuation and line breaks that occur in `texts`."""
    return sorted({run for text in texts for run in re.findall(r"[^\w\s]*[\n]+|[^\w\s]+", text)})
