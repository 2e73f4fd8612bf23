"""``python benchmarks/trainer.py --model DIR``: tokens per second of verl's update on a CPU, against plain PyTorch over the same rows.

The plain loop is what one would write by hand: weights in the same precision, rows of like length padded together, PyTorch's own
attention, logits at the targets only. Both update all weights once per batch; parts alternate, and the median of their ratios is what
counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from research_rl.cpu import CPU_ENVIRONMENT, fast_dtype, restart_with

ROUND = 64


def rows_of(path: Path | None, count: int, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Return (ids, response mask) of recorded trajectories, or of random ones: 300 to 559 tokens, 60 of prompt, 100 targets."""
    if path is not None:
        recorded = [json.loads(line) for line in path.read_text().splitlines()[:count]]
        return [(row["prompt_ids"] + row["response_ids"], row["response_mask"]) for row in recorded]
    random = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(300, 560, (1,), generator=random))
        ids = torch.randint(10, vocabulary - 10, (length,), generator=random).tolist()
        searched = [1] * 40 + [0] * (length - 60 - 40 - 60) + [1] * 60
        rows.append((ids, searched))
    return rows


class Plain:
    """The loop by hand."""

    def __init__(self, model: str, precision: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, precision), attn_implementation="sdpa"
        ).train()
        self.masters = [parameter.detach().float().clone().requires_grad_() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.AdamW(self.masters, lr=0.0)

    def update(self, rows: list[tuple[list[int], list[int]]], rows_at_once: int) -> None:
        """Accumulate the gradient of the rows' likelihood, and step."""
        rows = sorted(rows, key=lambda row: len(row[0]))
        for start in range(0, len(rows), rows_at_once):
            batch = rows[start : start + rows_at_once]
            width = -(-max(len(ids) for ids, _ in batch) // ROUND) * ROUND
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            targets = torch.zeros(len(batch), width, dtype=torch.bool)
            for number, (row, mask) in enumerate(batch):
                ids[number, : len(row)] = torch.tensor(row)
                targets[number, len(row) - len(mask) : len(row)] = torch.tensor(mask, dtype=torch.bool)
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][targets[:, 1:]]
            loss = cross_entropy(self.model.lm_head(hidden).float(), ids[:, 1:][targets[:, 1:]], reduction="sum")
            loss.backward()
        for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
                parameter.copy_(master)


class Verl:
    """verl's engine, as its workers call it."""

    def __init__(self, model: str, tokens: int, precision: str) -> None:
        import verl.workers.engine  # noqa: F401 (registers the engines)
        from verl.trainer.config import CheckpointConfig
        from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
        from verl.workers.engine.base import EngineRegistry
        from verl.workers.utils.losses import ppo_loss

        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        self.engine = EngineRegistry.new(
            model_type="language_model",
            backend="fsdp2",
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=True,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                model_dtype="float32",
                dtype=precision,
                use_torch_compile=False,
                use_dynamic_bsz=True,
                mixed_precision={"param_dtype": precision, "reduce_dtype": "float32", "buffer_dtype": "float32"},
                reshard_after_forward=False,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=0.0),
            checkpoint_config=CheckpointConfig(),
        )
        self.engine.initialize()
        actor = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_mini_batch_size=8,
            use_dynamic_bsz=True,
            optim=FSDPOptimizerConfig(lr=0.0),
            clip_ratio=0.2,
            loss_agg_mode="token-mean",
            use_kl_loss=False,
            entropy_coeff=0.0,
        )
        self.loss, self.tokens = partial(ppo_loss, config=actor), tokens

    def data(self, rows: list[tuple[list[int], list[int]]]) -> Any:
        """Return verl's batch, with an advantage for every row."""
        from verl.utils import tensordict_utils as tu

        def nested(values: list[Any]) -> torch.Tensor:
            return torch.nested.as_nested_tensor([torch.as_tensor(value) for value in values], layout=torch.jagged)

        fields = {
            "input_ids": [ids for ids, _ in rows],
            "position_ids": [list(range(len(ids))) for ids, _ in rows],
            "prompts": [ids[: len(ids) - len(mask)] for ids, mask in rows],
            "responses": [ids[len(ids) - len(mask) :] for ids, mask in rows],
            "response_mask": [mask for _, mask in rows],
            "loss_mask": [mask for _, mask in rows],
            "old_log_probs": [[-1.0] * len(mask) for _, mask in rows],
            "advantages": [[1.0] * len(mask) for _, mask in rows],
        }
        settings = {
            "use_remove_padding": True,
            "use_dynamic_bsz": True,
            "max_token_len_per_gpu": self.tokens,
            "use_fused_kernels": False,
            "temperature": 1.0,
            "calculate_entropy": False,
            "global_batch_size": len(rows),
        }
        return tu.get_tensordict({name: nested(values) for name, values in fields.items()}, settings)

    def update(self, rows: list[tuple[list[int], list[int]]]) -> None:
        """Do one update of verl's."""
        with self.engine.train_mode():
            self.engine.train_batch(self.data(rows), self.loss)


def main() -> None:
    """Print tokens per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face causal LM")
    parser.add_argument(
        "--trajectories", type=Path, default=None, help="JSON lines with prompt_ids, response_ids, response_mask"
    )
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, default=2048, help="of a micro-batch of verl's; the plain loop has as many rows of 512"
    )
    parser.add_argument("--precision", default=fast_dtype(), choices=("bfloat16", "float32"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plain, ours = Plain(options.model, options.precision), Verl(options.model, options.tokens, options.precision)
    rows = rows_of(options.trajectories, options.rows, plain.model.config.vocab_size)
    tokens = sum(len(ids) for ids, _ in rows)
    ratios = []
    for number in range(options.rounds + 1):
        started = time.perf_counter()
        plain.update(rows, max(1, options.tokens // 512))
        middle = time.perf_counter()
        ours.update(rows)
        seconds = (middle - started, time.perf_counter() - middle)
        if number:  # the first one prepares kernels
            ratios.append(seconds[0] / seconds[1])
            print(
                f"plain {tokens / seconds[0]:.0f} tok/s, verl {tokens / seconds[1]:.0f} tok/s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(json.dumps({"tokens": tokens, "rows": len(rows), "ratio_median": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    restart_with(CPU_ENVIRONMENT)
    sys.exit(main())
