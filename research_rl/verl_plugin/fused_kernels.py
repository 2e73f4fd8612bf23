"""verl's fused kernels (`use_fused_kernels`) with FSDP2, for a model whose head is not its embedding, as in 7B and larger models.

The kernels read the head's weight without calling the head. verl 0.9.1 gives a head of its own an FSDP unit of its own, which is gathered
only when it is called: the kernels would meet a shard of it, and fail ("got mixed torch.Tensor and DTensor").
"""

from __future__ import annotations

from typing import Any

import wrapt

_PATCHED = "_verl_fused_kernels_backend"  # what verl sets on a model whose forward pass uses the kernels


def install(fsdp_utils: Any) -> None:
    """Wrap the function that chooses FSDP's units (hooked to the import of `verl.utils.fsdp_utils`)."""
    wrapt.wrap_function_wrapper(fsdp_utils, "_select_fsdp2_wrap_targets", _without_head)


def _without_head(select: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Leave the head to the root's unit, which is gathered for the whole forward and backward pass."""
    model = args[0] if args else kwargs["model"]
    heads = {id(getattr(module, "lm_head", None)) for module in model.modules() if hasattr(module, _PATCHED)}
    return [module for module in select(*args, **kwargs) if id(module) not in heads]
