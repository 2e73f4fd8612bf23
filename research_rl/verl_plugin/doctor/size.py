"""What a model weighs: estimates from its configuration alone, with every assumption in sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 2**30
_BYTES = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2}
# Calibrated on a Llama of 135 M parameters, micro-batches of 2,048 tokens, on a CPU: trainer 8 GiB in an update, engine 3.5
_PROCESS = 1.5 * GIB  # a process with torch, verl, Ray and what they load
_OTHERS = 4 * GIB  # Ray, the driver, loggers, workers of rollouts and rewards
_LOGITS = 5  # copies of a micro-batch's logits in float32: as computed, log-softmax, gradients, entropy
_LAYER = 68  # bytes of activations per token, layer and hidden unit without checkpointing (34 in half precision, and as much in float32)
_KEPT = 4  # the same with gradient checkpointing: the layer's input


@dataclass(frozen=True)
class Part:
    """A part of an estimate: what it is, how it was reckoned, and its bytes."""

    what: str
    how: str
    size: float

    def __str__(self) -> str:
        return f"{self.what} {self.size / GIB:.1f} GiB ({self.how})"


def parameters(config: Any) -> int:
    """Return the number of a model's parameters, from its configuration: no weight is read, no memory taken.

    Raises:
        ValueError: it is no configuration of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def width(dtype: Any, otherwise: int = 4) -> int:
    """Return the bytes of a number of a type, by any name that verl and vLLM have for it."""
    return _BYTES.get(str(dtype).removeprefix("torch."), otherwise)


def checkpoint(count: int, contents: Any) -> float:
    """Return the bytes of one checkpoint: weights in float32, two of Adam's moments, and weights again as Hugging Face reads them."""
    return count * (4 * ("model" in contents) + 8 * ("optimizer" in contents) + 4 * ("hf_model" in contents))


def training(count: int, text: Any, tokens: int, ranks: int, checkpointed: bool) -> list[Part]:
    """Return what a rank has while it updates, on a micro-batch of `tokens`; FSDP shares weights, gradients and moments among `ranks`.

    `text`: the configuration of the language model.
    """
    kept = _KEPT if checkpointed else _LAYER
    return [
        Part("weights, gradients, Adam", f"{count / 1e6:,.0f} M parameters x 16 bytes / {ranks} ranks", count * 16 / ranks),
        Part("logits", f"{tokens:,} tokens x {text.vocab_size:,} x 4 bytes x {_LOGITS} copies", tokens * text.vocab_size * 4.0 * _LOGITS),
        Part(
            "activations", f"{tokens:,} tokens x {text.num_hidden_layers} layers x {text.hidden_size} x {kept} bytes",
            float(tokens * text.num_hidden_layers * text.hidden_size * kept),
        ),
    ]  # fmt: skip


def machine(count: int, text: Any, tokens: int, checkpointed: bool, engine: tuple[int, float] | None) -> list[Part]:
    """Return what a run on a CPU has at its peak, all processes together.

    `engine`: bytes of each of its numbers, and of its KV cache; None: supervised training has none, nor workers beside it.
    """
    parts = [*training(count, text, tokens, 1, checkpointed), Part("the trainer's process", "libraries", _PROCESS)]
    if engine is None:
        return parts
    width, cache = engine
    return [
        *parts,
        Part("engine", f"libraries, {width} bytes a parameter, KV cache", _PROCESS + count * width + cache),
        Part("other processes", "Ray, driver, workers", _OTHERS),
    ]
