"""verl's FSDP engine for CPUs, where every token takes time: no padding, logits only at targets, no rows without a gradient.

Its results equal verl's except for rounding (tests/contract/test_cpu_engine.py compares them). It is used with `use_remove_padding`;
without it, and for what it does not support (images, distillation, sequence parallelism), verl's own code runs.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

from research_rl.verl_plugin.cpu_attention import NAME

SHAPES = 64  # packed lengths are rounded up to multiples of this, because oneDNN prepares its kernels anew for every new length
_UNKNOWN = ("distillation_use_topk", "distillation_only", "calculate_sum_pi_squared", "use_fused_kernels")


_Engine: Any = FSDPEngineWithLMHead  # its decorator hides the class from type checkers
_imported: Any = transformer_impl  # they do not expect a name that this module has only imported


class CPUEngine(_Engine):
    """`language_model` engine of the device `cpu`."""

    def _build_module(self) -> Any:
        module = super()._build_module()
        windows = {kind for kind in getattr(module.config, "layer_types", None) or () if kind != "full_attention"}
        if self.use_remove_padding and not windows and not getattr(module.config, "attention_dropout", 0):
            module.set_attn_implementation(NAME)
        # for all other models, transformers itself builds the mask of a packed row
        return module

    def _build_fsdp_module(self, module: Any) -> Any:
        # verl offloads a reference model to pinned memory of the CPU, which needs an accelerator; here it is where it belongs already
        policy, _imported.CPUOffloadPolicy = _imported.CPUOffloadPolicy, lambda pin_memory: None
        try:
            module = super()._build_fsdp_module(module)
        finally:
            _imported.CPUOffloadPolicy = policy
        self._uses_fsdp2_cpu_offload_policy = False
        # float32 means no autocast: FSDP has cast the weights already, and autocast would cast them again
        self._autocast_dtype = torch.float32
        return module

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return one packed row of all sequences (1, tokens), and the positions whose logits are needed."""
        inputs, arguments = super().prepare_model_inputs(micro_batch)
        if not self._knows(micro_batch):
            return inputs, arguments
        tokens = inputs["input_ids"].shape[1]
        missing = -tokens % SHAPES
        if missing:  # the padding is one more sequence, whose output is not used
            inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, missing))
            inputs["position_ids"] = torch.cat([inputs["position_ids"], torch.arange(missing)[None]], dim=1)
        arguments["kept"] = inputs["logits_to_keep"] = predicting_positions(micro_batch)
        return inputs, arguments

    def prepare_model_outputs(self, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any) -> Any:
        """Return log-probabilities (and entropy) of the targets, 0 everywhere else: nested like `input_ids`."""
        if "kept" not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        kept, input_ids = output_args["kept"], micro_batch["input_ids"]
        logits = output.logits[0].float()
        if not output_args["temperature_is_one"]:
            logits = logits / output_args["temperature_rmpad"][kept, None]

        def spread(values: torch.Tensor) -> torch.Tensor:
            whole = values.new_zeros(input_ids.values().shape[0]).index_put((kept,), values)
            return torch.nested.nested_tensor_from_jagged(whole, input_ids.offsets())

        labels = output_args["input_ids_rmpad_rolled"][kept]
        outputs = {"log_probs": spread(-cross_entropy(logits, labels, reduction="none"))}
        if tu.get_non_tensor_data(micro_batch, key="calculate_entropy", default=False):
            outputs["entropy"] = spread(self.compute_entropy_from_logits(logits))
        return outputs

    def forward_backward_batch(self, data: Any, loss_function: Any, forward_only: bool = False) -> Any:
        """As in verl, but without the rows whose advantages are all zero, if their gradient is zero."""
        # micro-batches of a fixed size must be filled, and several ranks must have the same number of micro-batches
        dynamic = tu.get_non_tensor_data(data, key="use_dynamic_bsz", default=True)
        alone = self.get_data_parallel_size() == 1
        if dynamic and alone and not forward_only and zero_advantage_is_zero_gradient(loss_function):
            teaching = [row for row, values in enumerate(data["advantages"].unbind()) if bool((values != 0).any())] or [0]
            loss_function = partial(_with_tokens_of_all, loss_function, data["loss_mask"].sum().item())
            data = tu.index_select_tensor_dict(data, teaching)
        return super().forward_backward_batch(data, loss_function, forward_only=forward_only)

    def optimizer_step(self) -> Any:
        """As in verl; then memory that the activations have left free in the heap is returned to the system."""
        norm = super().optimizer_step()
        give_back_memory()
        return norm

    def _knows(self, micro_batch: Any) -> bool:
        asked = [name for name in _UNKNOWN if tu.get_non_tensor_data(micro_batch, key=name, default=False)]
        packed = tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=True)
        return bool(packed) and not asked and not self.use_ulysses_sp and not self.pad_to_length


def give_back_memory() -> None:
    """Return the heap's free pages to the system, if its C library supports it.

    Activations of ever new sizes fragment the heap: without this, the trainer of a 135M model grows by 0.4 GB per step.
    """
    with contextlib.suppress(OSError, AttributeError):  # not GNU's C library
        ctypes.CDLL(None).malloc_trim(0)


def predicting_positions(micro_batch: Any) -> torch.Tensor:
    """Return the positions, in the packed row, that predict a target: those before each token whose mask is 1.

    The mask is nested: one of whole sequences in supervised training, of responses only in RL.
    """
    offsets, mask = micro_batch["input_ids"].offsets(), micro_batch["loss_mask"]
    ends = offsets[1:].tolist()
    found = [end - len(one) + torch.nonzero(one)[:, 0] - 1 for end, one in zip(ends, mask.unbind(), strict=True)]
    kept = torch.cat(found)
    return kept if len(kept) else torch.zeros(1, dtype=torch.long)  # without any target there must still be a gradient, of zero


def zero_advantage_is_zero_gradient(loss_function: Any) -> bool:
    """Return whether a row whose advantages are all 0 cannot change the gradient: PPO's clipped loss without entropy or KL terms."""
    settings = getattr(loss_function, "keywords", {}).get("config")
    if getattr(loss_function, "func", None) is not ppo_loss or settings is None:
        return False
    policy_loss: Callable[..., Any] = get_policy_loss_fn(settings.policy_loss.get("loss_mode", "vanilla"))
    return policy_loss is compute_policy_loss_vanilla and not settings.entropy_coeff and not settings.use_kl_loss


def _with_tokens_of_all(loss_function: Any, tokens: float, *, model_output: Any, data: Any, dp_group: Any = None) -> Any:
    """Return the loss as a mean over `tokens`, those of the whole batch."""
    tu.assign_non_tensor(data, batch_num_tokens=tokens)
    return loss_function(model_output=model_output, data=data, dp_group=dp_group)
