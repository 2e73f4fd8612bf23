"""``python -m research_rl.training.merge_lora DIRECTORY``: merge a model and the LoRA adapter beside it, in place.

It runs in a process of its own, because the process of `research_rl.training.export` must not import torch.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from research_rl.errors import missing_extra

ADAPTER = "lora_adapter"  # as verl's merger names the directory
MERGED = "merged_lora.json"  # the adapter's configuration, kept as a record of what was merged


def merge(directory: Path) -> None:
    """Add the adapter of `directory`/lora_adapter to the model's weights: W + alpha / r · B A (Hu et al., 2021, arXiv:2106.09685)."""
    try:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "peft", "train") from error
    base = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    merged = PeftModel.from_pretrained(base, str(directory / ADAPTER)).merge_and_unload()  # type: ignore[operator]  # a wrapped method of the base model
    part = directory / "merged"
    merged.save_pretrained(part)
    for file in directory.glob("model*.safetensors*"):
        file.unlink()  # the merged model may have fewer files
    for file in part.iterdir():
        file.replace(directory / file.name)
    part.rmdir()
    (directory / ADAPTER / "adapter_config.json").replace(directory / MERGED)
    shutil.rmtree(directory / ADAPTER)


if __name__ == "__main__":
    merge(Path(sys.argv[1]))
