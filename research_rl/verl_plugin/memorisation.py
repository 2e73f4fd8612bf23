"""The likelihood term of R1-Searcher++ inside verl's update: loss = policy loss + μ · NLL of the mini-batch's search-free paths.

The paths are stored in the rows of the rollouts they were made from (`extra_fields["memory"]`). Between verl's backward pass over a
mini-batch and its optimiser step there is a second backward pass, over the paths, with verl's `sft_loss` times μ; the gradients add up.
Without the key (μ = 0), verl's update is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wrapt

_COPIED = (
    "use_remove_padding",
    "use_dynamic_bsz",
    "max_token_len_per_gpu",
    "micro_batch_size_per_gpu",
    "use_fused_kernels",
    "pad_token_id",
)


def install(base: Any) -> None:
    """Wrap the engine's `train_batch` (hooked to the import of `verl.workers.engine.base`)."""
    wrapt.wrap_function_wrapper(base.BaseEngine, "train_batch", _train_batch)


def _train_batch(train_batch: Any, engine: Any, args: Any, kwargs: Any) -> Any:
    data = args[0] if args else kwargs["data"]
    rows = memory_rows(data)
    if rows is None:
        return train_batch(*args, **kwargs)
    mu = max((row["mu"] for row in rows), default=0.0)
    # every rank must take part in every forward pass, so all ranks get the same number of rows, with empty ones if necessary
    most, total, mu = _agree(engine, len(rows), mu)
    if most == 0:
        return train_batch(*args, **kwargs)
    memory = memory_batch(data, rows, most)
    step, told = engine.optimizer_step, {}

    def step_with_memory() -> Any:
        outputs = engine.forward_backward_batch(memory, loss_times(mu), forward_only=False)
        if outputs:
            told["memory_nll"] = sum(outputs["loss"]) / mu
        return step()

    engine.optimizer_step = step_with_memory
    try:
        outputs = train_batch(*args, **kwargs)
    finally:
        del engine.optimizer_step
    if engine.is_mp_src_rank_with_outputs():
        # lists, like verl's own metrics of micro-batches
        outputs["metrics"] |= {name: [value] for name, value in {**told, "memory_rows": float(total)}.items()}
    return outputs


def memory_rows(data: Any) -> list[dict[str, Any]] | None:
    """Return the search-free paths of a mini-batch's rows (dicts with prompt_ids, response_ids, mu); None if memorisation is off."""
    if "extra_fields" not in data:
        return None
    fields = data["extra_fields"]
    fields = fields.tolist() if hasattr(fields, "tolist") else list(fields)
    if not any(isinstance(field, dict) and "memory" in field for field in fields):
        return None
    # verl pads a batch with rows that repeat the fields of the first one but have no target
    targets = [int(mask.sum()) for mask in data["loss_mask"].unbind()]
    return [
        field["memory"]
        for field, count in zip(fields, targets, strict=True)
        if count and isinstance(field, dict) and field.get("memory")
    ]


def memory_batch(data: Any, rows: Sequence[dict[str, Any]], size: int) -> Any:
    """Return the paths as verl's no-padding batch, filled with rows without targets up to `size`, or to full micro-batches."""
    import torch
    from verl.utils import tensordict_utils as tu

    settings = {key: tu.get(data, key) for key in _COPIED if key in data}
    if not settings.get("use_dynamic_bsz", True):
        micro = settings["micro_batch_size_per_gpu"] = min(int(settings["micro_batch_size_per_gpu"]), size)
        size = -(-size // micro) * micro
    first = (rows[0]["prompt_ids"] if rows else [0, 0])[:2]
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    masks = [[0] * len(row["prompt_ids"]) + [1] * len(row["response_ids"]) for row in rows]
    for _ in range(size - len(rows)):
        ids.append(list(first))
        masks.append([0] * len(first))

    def nested(values: list[list[int]]) -> Any:
        return torch.nested.as_nested_tensor([torch.tensor(value) for value in values], layout=torch.jagged)

    tensors = {
        "input_ids": nested(ids),
        "position_ids": nested([list(range(len(row))) for row in ids]),
        "loss_mask": nested(masks),
    }
    return tu.get_tensordict(tensors, {**settings, "temperature": 1.0, "calculate_entropy": False})


def loss_times(mu: float) -> Any:
    """Return μ times verl's supervised loss: the mean negative log-likelihood of the target tokens of all ranks."""
    from verl.workers.utils.losses import sft_loss

    def loss(model_output: Any, data: Any, dp_group: Any = None) -> Any:
        value, metrics = sft_loss(config=None, model_output=model_output, data=data, dp_group=dp_group)  # type: ignore[arg-type]  # verl does not read config here
        return mu * value, metrics

    return loss


def _agree(engine: Any, rows: int, mu: float) -> tuple[int, int, float]:
    """Return the most rows that a rank has, the rows of all ranks together, and μ."""
    import torch
    from verl.utils.device import get_device_id

    seen = torch.tensor([float(rows), mu], device=get_device_id())
    total = seen.clone()
    torch.distributed.all_reduce(seen, op=torch.distributed.ReduceOp.MAX, group=engine.get_data_parallel_group())
    torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.SUM, group=engine.get_data_parallel_group())
    return int(seen[0].item()), int(total[0].item()), float(seen[1].item())
