"""Estimates of memory and disk from a model's configuration alone, with every assumption stated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

GIB = 2**30
_BYTES = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2}
# Calibrated on a Llama of 135 M parameters, micro-batches of 2,048 tokens, on a CPU. Proportional set sizes at the peak of an update: all
# processes 16.3 GiB, of which the trainer 8.6, the engine 3.0
_PROCESS = 1.5 * GIB  # a process that has loaded torch, verl and Ray
_HEAP = 1 * GIB  # what the trainer's heap keeps between tensors of changing sizes
_OTHERS = 5 * GIB  # Ray, the driver, loggers, workers of rollouts and rewards
_LOGITS = 5  # copies of a micro-batch's logits in float32: as computed, log-softmax, gradients, entropy
_LAYER = 68  # bytes of activations per token, layer and hidden unit without checkpointing (34 in half precision, and as much in float32)
_KEPT = 4  # the same with gradient checkpointing: only the layer's input is kept, and one layer at a time is held in full
_CHUNK = 512  # tokens whose logits verl's fused kernels hold at a time (FusedLinearForPPO)


@dataclass(frozen=True)
class Part:
    """A part of an estimate: what it is, how it was calculated, and its bytes."""

    what: str
    how: str
    size: float

    def __str__(self) -> str:
        return f"{self.what} {self.size / GIB:.1f} GiB ({self.how})"


def parameters(config: Any) -> int:
    """Return the number of a model's parameters, from its configuration, without reading weights or using memory for them.

    Raises:
        ValueError: it is not the configuration of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def adapter_parameters(config: Any, model: Any) -> int:
    """Return the number of parameters of the LoRA adapter that PEFT makes from verl's section `model`; 0 without one.

    Raises:
        ValueError: its target modules are not in the model.
    """
    if not model.get("lora_rank"):
        return 0
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    chosen: Any = OmegaConf.to_container(
        OmegaConf.create({key: model.get(key) for key in ("target_modules", "exclude_modules")})
    )
    with torch.device("meta"):
        adapted = get_peft_model(
            AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM", r=model.lora_rank, **chosen)
        )
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def width(dtype: Any, otherwise: int = 4) -> int:
    """Return the bytes per number of a type, by any name that verl and vLLM use for it; `otherwise` for an unknown one."""
    return _BYTES.get(str(dtype).removeprefix("torch."), otherwise)


def checkpoint(count: int, contents: Any, adapter: int = 0) -> float:
    """Return the bytes of one checkpoint: weights in float32, Adam's two moments, and the weights again in Hugging Face's format.

    `adapter`: parameters of a LoRA adapter; with one, only the adapter has moments.
    """
    weights = 4 * ("model" in contents) + 4 * ("hf_model" in contents)
    return (count + adapter) * weights + (adapter or count) * 8 * ("optimizer" in contents)


def training(
    count: int, text: Any, tokens: int, ranks: int, checkpointed: bool, adapter: int = 0, fused: bool = False
) -> list[Part]:
    """Return the memory of a rank in an update with micro-batches of `tokens`; FSDP shards weights, gradients and moments over `ranks`.

    `text`: the configuration of the language model; `adapter`: the parameters of a LoRA adapter, with which the model is frozen;
    `fused`: verl's fused kernels, which compute the logits of a few tokens at a time.
    """
    per_token = text.num_hidden_layers * _KEPT + _LAYER if checkpointed else text.num_hidden_layers * _LAYER
    kept = (
        f"{text.num_hidden_layers} layers x {_KEPT} + {_LAYER}"
        if checkpointed
        else f"{text.num_hidden_layers} layers x {_LAYER}"
    )
    whole = Part("weights, gradients, Adam", f"{count / 1e6:,.0f} M parameters x 16 bytes / {ranks} ranks", count * 16 / ranks)
    split = [
        Part("frozen weights", f"{count / 1e6:,.0f} M parameters x 4 bytes / {ranks} ranks", count * 4 / ranks),
        Part(
            "LoRA adapter, gradients, Adam",
            f"{adapter / 1e6:,.0f} M parameters x 16 bytes / {ranks} ranks",
            adapter * 16 / ranks,
        ),
    ]
    at_once = min(tokens, _CHUNK) if fused else tokens
    return [
        *(split if adapter else [whole]),
        Part("logits", f"{at_once:,} tokens x {text.vocab_size:,} x 4 bytes x {_LOGITS} copies", at_once * text.vocab_size * 4.0 * _LOGITS),
        Part("activations", f"{tokens:,} tokens x {text.hidden_size} x ({kept}) bytes", float(tokens * text.hidden_size * per_token)),
    ]  # fmt: skip  # a table


def machine(
    count: int, text: Any, tokens: int, checkpointed: bool, engine: tuple[int, float] | None, separate: bool = False
) -> list[Part]:
    """Return the peak memory of a run on a CPU, of all processes together.

    `engine`: bytes per parameter, and bytes of the KV cache; None for supervised training, which has no engine and no workers.
    `separate`: weights are carried to the engine by a process of its own, and put aside twice between updates.
    """
    parts = [
        *training(count, text, tokens, 1, checkpointed),
        Part("the trainer's process", "libraries, heap", _PROCESS + _HEAP),
    ]
    if engine is None:
        return parts
    width, cache = engine
    carried = Part(
        "weights on their way", f"a process, 2 copies of {count / 1e6:,.0f} M parameters x 4 bytes", _PROCESS + count * 8
    )
    return [
        *parts,
        *([carried] if separate else []),
        Part("engine", f"libraries, {width} bytes a parameter, KV cache", _PROCESS + count * width + cache),
        Part("other processes", "Ray, driver, workers", _OTHERS),
    ]
