"""Run by test_cpu_engine.py: log-probabilities and gradients of the same rollouts, padded by verl and packed by us, saved by rank 0.

Arguments: rank, ranks, rendezvous file, file to save to.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from memory_gradient import nested
from ranks import engine_of, gradients
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
from verl.workers.utils.losses import ppo_loss, sft_loss

LENGTHS = [(9, 140), (5, 300), (12, 33), (7, 128), (4, 60), (6, 1)]  # of prompt and response; blocks of queries are 128
WITHOUT_ADVANTAGE = (1, 4)


def batch(ranks_share: slice, packed: bool, old_log_probs=None, whole_mask: bool = False, temperature: float = 0.7):
    """Return verl's batch of this rank's share of the rollouts."""
    random = torch.Generator().manual_seed(0)
    rows = {name: [] for name in ("prompts", "responses", "response_mask", "input_ids", "old_log_probs", "advantages")}
    for number, (prompt, response) in enumerate(LENGTHS):
        ids = torch.randint(10, 900, (prompt + response,), generator=random)
        rows["input_ids"].append(ids)
        rows["prompts"].append(ids[:prompt])
        rows["responses"].append(ids[prompt:])
        rows["response_mask"].append(
            torch.cat([torch.ones(1, dtype=torch.long), torch.randint(0, 2, (response - 1,), generator=random)])
        )
        rows["old_log_probs"].append(torch.randn(response, generator=random) / 10)  # what another policy would differ by
        advantage = 0.0 if number in WITHOUT_ADVANTAGE else float(torch.randn(1, generator=random))
        rows["advantages"].append(torch.full((response,), advantage))
    rows["position_ids"] = [torch.arange(len(ids)) for ids in rows["input_ids"]]
    padded = [
        torch.cat([torch.zeros(p, dtype=torch.long), mask]) for (p, _), mask in zip(LENGTHS, rows["response_mask"], strict=True)
    ]
    rows["loss_mask"] = padded if whole_mask else rows["response_mask"]
    settings = {
        "use_remove_padding": packed, "use_dynamic_bsz": True, "max_token_len_per_gpu": 400, "use_fused_kernels": False,
        "temperature": temperature, "calculate_entropy": True, "global_batch_size": len(LENGTHS),
    }  # fmt: skip
    mine = {name: values[ranks_share] for name, values in rows.items()}
    if old_log_probs:
        mine["old_log_probs"] = [noise + old for noise, old in zip(mine["old_log_probs"], old_log_probs, strict=True)]
    return tu.get_tensordict({name: nested(values) for name, values in mine.items()}, settings)


def main(rank: int, ranks: int, rendezvous: str, out: str) -> None:
    made: dict = {}
    for packed in (False, True):
        engine = engine_of(rank, ranks, rendezvous, packed)
        made[packed] = {"attention": engine.module.config._attn_implementation}
        share = slice(rank * len(LENGTHS) // ranks, (rank + 1) * len(LENGTHS) // ranks)
        data = batch(share, packed)
        with engine.eval_mode():
            outputs = engine.infer_batch(data, None)["model_output"]
        for name in ("log_probs", "entropy"):
            made[packed][name] = [row.clone() for row in outputs[name].unbind()]
        if not packed:  # both updates start from the same rollouts
            sampled = [
                row[len(row) - len(mask) - 1 : -1].clone()
                for row, mask in zip(outputs["log_probs"].unbind(), data["response_mask"].unbind(), strict=True)
            ]
        made[packed]["targets"] = [
            torch.cat([torch.zeros(len(ids) - len(mask), dtype=torch.bool), mask.bool()]).roll(-1)
            for ids, mask in zip(data["input_ids"].unbind(), data["response_mask"].unbind(), strict=True)
        ]
        passes = []
        forward_step = engine.forward_step
        engine.forward_step = lambda micro_batch, *rest, step=forward_step, seen=passes, **named: (
            seen.append(len(micro_batch)) or step(micro_batch, *rest, **named)
        )
        for name, entropy in (("policy", 0.0), ("policy_and_entropy", 0.01)):
            actor = FSDPActorConfig(
                strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=6, use_dynamic_bsz=True, optim=FSDPOptimizerConfig(lr=0.0),
                clip_ratio=0.2, loss_agg_mode="token-mean", use_kl_loss=False, entropy_coeff=entropy,
            )  # fmt: skip
            made[packed][name] = gradients(engine, batch(share, packed, sampled), partial(ppo_loss, config=actor))[0]
            made[packed][f"rows_{name}"] = sum(passes)
            passes.clear()
        made[packed]["supervised"] = gradients(
            engine, batch(share, packed, whole_mask=True, temperature=1.0), partial(sft_loss, config=None)
        )[0]
    if rank == 0:
        torch.save(made, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
