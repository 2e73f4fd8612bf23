"""Run by test_memorisation.py, one process per rank: gradients of verl's own update of a mini-batch, saved by rank 0.

Arguments: rank, ranks, rendezvous file, file to save to.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from ranks import engine_of, gradients
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
from verl.workers.utils.losses import ppo_loss, sft_loss

MU = 0.1
PATHS = [
    {"prompt_ids": [11, 12, 13], "response_ids": [20, 21, 22, 23], "mu": MU},
    {"prompt_ids": [31, 12], "response_ids": [40, 41], "mu": MU},
    {"prompt_ids": [5, 6, 7], "response_ids": [50, 51, 52, 0], "mu": MU},
    None,
]  # the second rank has one, the first two
SETTINGS = {
    "use_remove_padding": False, "use_dynamic_bsz": False, "micro_batch_size_per_gpu": 2, "max_token_len_per_gpu": 1_000,
    "use_fused_kernels": False, "temperature": 1.0, "calculate_entropy": False, "global_batch_size": 4,
}  # fmt: skip


def nested(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def rollouts(memories, rank: int, ranks: int):
    """Return this rank's part of four rollouts, with what their rows carry."""
    random = torch.Generator().manual_seed(0)
    prompt, response = [5, 7, 6, 4], [8, 3, 9, 6]
    prompts = [torch.randint(10, 900, (n,), generator=random) for n in prompt]
    responses = [torch.randint(10, 900, (n,), generator=random) for n in response]
    masks = [torch.cat([torch.ones(1, dtype=torch.long), torch.randint(0, 2, (n - 1,), generator=random)]) for n in response]
    rows = {
        "prompts": prompts, "responses": responses, "response_mask": masks, "loss_mask": masks,
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        "position_ids": [torch.arange(p + r) for p, r in zip(prompt, response, strict=True)],
        "old_log_probs": [-torch.rand(n, generator=random) * 3 - 3 for n in response],
        "advantages": [torch.randn(n, generator=random) for n in response],
    }  # fmt: skip
    mine = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    tensors = {name: nested(values[mine]) for name, values in rows.items()}
    if memories is not None:
        tensors["extra_fields"] = memories[mine]
    return tu.get_tensordict(tensors, SETTINGS)


def supervised(rank: int, ranks: int):
    """Return the paths as verl's supervised trainer would see them (on one rank)."""
    rows = [path for path in PATHS if path]
    ids = [path["prompt_ids"] + path["response_ids"] for path in rows]
    masks = [[0] * len(path["prompt_ids"]) + [1] * len(path["response_ids"]) for path in rows]
    tensors = {
        "input_ids": nested(ids),
        "position_ids": nested([list(range(len(row))) for row in ids]),
        "loss_mask": nested(masks),
    }
    return tu.get_tensordict(tensors, {**SETTINGS, "micro_batch_size_per_gpu": 3})


def main(rank: int, ranks: int, rendezvous: str, out: str) -> None:
    engine = engine_of(rank, ranks, rendezvous)
    actor = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=2, optim=FSDPOptimizerConfig(lr=0.0),
        clip_ratio=0.2, loss_agg_mode="token-mean", use_kl_loss=False, entropy_coeff=0.0,
    )  # fmt: skip

    policy = partial(ppo_loss, config=actor)
    made = {
        "plain": gradients(engine, rollouts(None, rank, ranks), policy)[0],
        "mu_zero": gradients(engine, rollouts([{"turn_scores": []}] * 4, rank, ranks), policy)[0],
        "no_path": gradients(engine, rollouts([{"memory": None}] * 4, rank, ranks), policy)[0],
    }
    made["memory"], metrics = gradients(engine, rollouts([{"memory": path} for path in PATHS], rank, ranks), policy)
    if ranks == 1:
        made["supervised"] = gradients(engine, supervised(rank, ranks), partial(sft_loss, config=None))[0]
    if rank == 0:
        torch.save(
            {"gradients": made, "metrics": {name: value for name, value in metrics.items() if name.startswith("memory")}}, out
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
