"""Causal attention over packed sequences on CPUs: each sequence by itself, in blocks of queries.

PyTorch's own CPU kernel does not support packing, and takes 2.4 times as long in bfloat16 for sequences of 290 to 512 tokens (float32:
1.3 times).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "research_rl_packed"
BLOCK = 128  # queries at a time; keys after a block are not read


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return outputs (1, tokens, heads, head size) and None for the weights: the interface of transformers' attention functions.

    `query` is (1, heads, tokens, head size), `key` and `value` have as many heads or a divisor of that. A sequence begins where the
    position is 0.
    """
    if query.shape[0] != 1 or position_ids is None or dropout or getattr(module, "sliding_window", None):
        raise NotImplementedError(f"{NAME} is for packed sequences, without dropout or a sliding window: use sdpa")
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = query[0].unflatten(0, (key.shape[1], -1)) * scale  # (key heads, queries per key head, tokens, head size)
    key, value = key[0], value[0]
    outputs = [
        _causal(query[:, :, start:end], key[:, start:end], value[:, start:end])
        for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)
    ]
    return torch.cat(outputs, dim=2).flatten(0, 1).transpose(0, 1)[None].contiguous(), None


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the attention of one sequence: (key heads, queries per key head, tokens, head size)."""
    tokens, outputs = query.shape[2], []
    for start in range(0, tokens, BLOCK):
        end = min(start + BLOCK, tokens)
        block = query[:, :, start:end].flatten(1, 2)
        mask = torch.full((end - start, end), float("-inf"), dtype=query.dtype).triu(start + 1).repeat(query.shape[1], 1)
        weights = torch.baddbmm(mask, block, key[:, :end].transpose(1, 2)).softmax(-1)
        outputs.append(torch.bmm(weights, value[:, :end]).unflatten(1, (query.shape[1], -1)))
    return torch.cat(outputs, dim=2)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
