"""Model directories for tests: the shipped tokenizer in the form of a chat family, with several EOS, or of a base family, with a BOS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests import tool_families

WEIGHTS = Path(__file__).parents[1] / "quickstart" / "start_model" / "weights"
OWN = "<|endoftext|>"  # the tokenizer's own EOS

# family: chat template, the EOS tokens of its generation config, the one that ends an assistant's turn
FAMILIES = {
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        [OWN, "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
        [OWN, "<|assistant|>", "<|end|>"],
        "<|end|>",
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        [OWN, "<|user|>", "<|observation|>"],
        "<|user|>",
    ),
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
        "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        [OWN, "<|im_end|>"],
        "<|im_end|>",
    ),
    "qwen2-base": (  # the template writes an end that the model does not end at
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        [OWN],
        OWN,
    ),
}
CONTROL = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|im_start|>",
    "<|im_end|>",
)


def tokenizer_like(family: str, begins: bool = False) -> Any:
    """Return the tokenizer of a family, with one vocabulary for all; `begins`: it begins a text with `<bos>`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL]})
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.chat_template = FAMILIES[family][0]
    if begins:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    return tokenizer


def model_like(folder: Path, family: str, begins: bool = False) -> Path:
    """Write tokenizer and generation config of a family into a folder, and return it."""
    tokenizer = tokenizer_like(family, begins)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(FAMILIES[family][1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))
    return folder


def family_like(folder: Path, family: str, shape: dict[str, Any], vocabulary: int | None = None) -> Path:
    """Write what a model has beside its weights: `shape` as its config.json, the shipped tokenizer with the tokens and the template of a
    family of tests/tool_families.py. `vocabulary`: rows of the embedding, if more than tokens. Return the folder."""
    template, _, end, _ = tool_families.FAMILIES[family]
    tokenizer: Any = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tool_families.SPECIAL]})
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "eos_token": end})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids([OWN, end])}))
    (folder / "config.json").write_text(json.dumps(shape | {"vocab_size": vocabulary or len(tokenizer)}))
    return folder
