"""Every GPU recipe at 1, 8 and 64 GPUs, without a GPU: does it compose, do its batches divide, and what would a GPU have to hold?

`python benchmarks/gpus.py` prints the table of docs/gpus.md; with `--write` it puts it there. The checks are the doctor's, and the
memory is its estimate: nothing is run, no weight is read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from research_rl.errors import ConfigError
from research_rl.verl_plugin.doctor.compose import compositions
from research_rl.verl_plugin.doctor.examine import examine
from research_rl.verl_plugin.doctor.finding import Finding
from research_rl.verl_plugin.doctor.lengths import lengths
from research_rl.verl_plugin.doctor.machine import memory, on_a_gpu
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.size import GIB
from research_rl.verl_plugin.doctor.speed import seconds_on_gpus, step_of
from research_rl.verl_plugin.doctor.training import batches

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "gpus.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
SIZES = (1, 8, 64)
NODE = 8  # GPUs of a node
QWEN = {"model_type": "qwen2", "num_key_value_heads": 4, "max_position_embeddings": 32768}
MODELS = {  # shapes, as the models' config.json has them
    "Qwen2.5-7B": QWEN
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "vocab_size": 152064,
    },
    "Qwen2.5-3B": QWEN
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "vocab_size": 151936,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen3-1.7B": QWEN
    | {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
}
RECIPES = {  # recipe: model, GiB of a GPU
    "research/gpu": ("Qwen2.5-7B", 80),
    "research/gpu_lora_80gb": ("Qwen2.5-7B", 80),
    "research/gpu_lora_24gb": ("Qwen2.5-3B", 24),
    "r1_searcher/gpu": ("Qwen2.5-7B", 80),
    "r1_searcher/gpu_llama": ("Llama-3.1-8B", 80),
    "r1_searcher/gpu_lora_80gb": ("Qwen2.5-7B", 80),
    "r1_searcher/gpu_lora_24gb": ("Qwen2.5-3B", 24),
    "r1_searcher_pp/gpu": ("Qwen2.5-7B", 80),
    "search_r1/gpu": ("Qwen2.5-7B", 80),
    "tool_calls/gpu": ("Qwen3-1.7B", 80),
    "tool_calls/gpu_small": ("Qwen3-1.7B", 24),
    "wikipedia/gpu": ("SmolLM2-135M", 80),
}


@dataclass(frozen=True)
class Row:
    """A recipe at a number of GPUs: what the doctor finds, and the estimate in GiB a GPU; of its stages the one that needs most."""

    recipe: str
    gpus: int
    findings: tuple[Finding, ...]
    gib: float | None
    seconds: float | None = None  # of a step, of whose assumptions the page tells

    def errors(self, check: str) -> list[str]:
        """Return what a check finds to be wrong; a warning of the memory, that the estimate is more than there is, counts."""
        return [str(found) for found in self.findings if found.name == check and found.level != "ok"]

    def __str__(self) -> str:
        """Return the row of the table."""
        model, card = RECIPES[self.recipe]

        def told(check: str) -> str:
            return "no" if self.errors(check) else "yes"

        composes = "no" if self.errors("recipe") else "yes"
        estimate = (
            "–" if self.gib is None else f"{self.gib:.0f} of {card}: {'fits' if told('memory') == 'yes' else 'does not fit'}"
        )
        seconds = "–" if self.seconds is None else f"{self.seconds:,.0f}" if self.seconds >= 1 else "under 1"
        return f"| `{self.recipe}.yaml` | {model} | {self.gpus} | {composes} | {told('batches')} | {estimate} | {seconds} |"


def look(recipe: str, gpus: int, overrides: tuple[str, ...] = ()) -> Row:
    """Return what is found of a recipe at a number of GPUs, nodes of eight."""
    model, card = RECIPES[recipe]
    findings: list[Finding] = []
    gib = seconds = None
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[model]), encoding="utf-8")
        given = [
            f"trainer.nnodes={max(1, gpus // NODE)}",
            f"trainer.n_gpus_per_node={min(gpus, NODE)}",
            f"actor_rollout_ref.model.path={folder}",
            *overrides,
        ]
        try:
            for _, config in compositions(ROOT / "recipes" / f"{recipe}.yaml", Path(folder), given):
                setup = Setup(config, measured={"gpus": [float(card * GIB)] * min(gpus, NODE)})
                findings += examine(setup, [batches, lengths, memory])
                gib = max(gib or 0.0, sum(part.size for part in on_a_gpu(setup)) / GIB)
                seconds = max(seconds or 0.0, seconds_on_gpus(step_of(setup), gpus))
        except ConfigError as mistake:
            findings.append(Finding("error", "recipe", str(mistake)))
    return Row(recipe, gpus, tuple(findings), gib, seconds)


def table() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| recipe | model | GPUs | composes | batches divide | GiB a GPU in an update (estimate) | s a step on H100 (estimate) |"
    yield "|---|---|---|---|---|---|---|"
    for recipe in RECIPES:
        for gpus in SIZES:
            yield str(look(recipe, gpus))


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put it into {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args()
    text = "".join(f"{line}\n" for line in table())
    if options.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
