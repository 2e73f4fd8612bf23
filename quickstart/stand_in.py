"""A small random model that stands in for a large one: its architecture, vocabulary, special tokens and chat template, and other sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.codec import HFCodec, encode_row
from research_rl.errors import ConfigError

WIDTH, LAYERS, HEADS = 64, 2, 2  # a head has 32 dimensions, the fewest that vLLM has kernels for on a CPU
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "head_dim": WIDTH // HEADS,
    "max_window_layers": LAYERS,
}
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LEARNING_RATE = 3e-3
_ENOUGH = 0.05  # nats a token: at this loss sampled text is, but for a word here and there, that of the rows


def stand_in(source: str, folder: Path, seed: int) -> dict[str, Any]:
    """Write a small random model of the family of `source` (a directory or hub id, whose weights are not read); return what was changed.

    Raises:
        ConfigError: there is no configuration or tokenizer at `source`, or it is not one of a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model to stand in for at {source!r}: its config.json and tokenizer are needed, its weights are not. Name a directory or a "
            f"hub id: --model. ({' '.join(str(error).split())[:300]})"
        ) from None
    text, changed = config.get_text_config(), {}
    if text is not config:
        raise ConfigError(
            f"{source} ({config.model_type}) has parts beside its language model: name a model of text only, with --model"
        )
    if missing := [name for name in _NEEDED if getattr(text, name, None) is None]:
        raise ConfigError(
            f"{source}: no small model of the architecture {config.model_type} can be made, for its configuration has no "
            f"{', '.join(missing)}. Name one that has, with --model: Qwen2, Qwen3, Llama, Mistral, Gemma and others"
        )
    sizes = SIZES | {"num_key_value_heads": 1 if text.num_key_value_heads < text.num_attention_heads else HEADS}
    for name, size in sizes.items():
        if getattr(text, name, None) is not None:
            changed[name] = (getattr(text, name), size)
            setattr(text, name, size)
    if kinds := getattr(text, "layer_types", None):
        text.layer_types = (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS]  # each kind of attention, where there are two
    config.dtype = "float32"
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())[:300]}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:
        return changed  # many models have none
    (folder / "generation_config.json").write_text(json.dumps(generation.to_diff_dict()), encoding="utf-8")
    return changed


def teach(folder: Path, codec: HFCodec, rows: Sequence[Any], most_steps: int = 400) -> tuple[int, float]:
    """Train the model in `folder` on some demonstrations until it knows them by heart; return (steps, loss in nats a token).

    A random model would never search: it is to write what the recipe's protocol asks for, whatever it means.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    encoded = [tuple(torch.tensor(part) for part in encode_row(codec, row)) for row in rows]
    step, loss = 0, float("inf")
    while step < most_steps and loss > _ENOUGH:
        loss = 0.0
        for ids, mask in encoded:
            at = mask[1:].nonzero()[:, 0]  # logits only where there is a target: a vocabulary of 150,000 takes most of the time
            logits = model(ids[None], logits_to_keep=at).logits[0]
            one = torch.nn.functional.cross_entropy(logits.float(), ids[1:][at]) / len(encoded)
            one.backward()
            loss += one.item()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    model.save_pretrained(folder)
    return step, loss
