"""How long a step will take: arithmetic, and on a CPU the speed of this processor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from research_rl.cpu import fast_dtype
from research_rl.training.flops import H100, H100_USED, Step
from research_rl.verl_plugin.doctor.finding import Finding, check, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.size import width
from research_rl.verl_plugin.doctor.training import separate

_FILLED = 0.5  # assumed: the share of the longest prompt and response that a rollout has on average
_CPU_USED = 0.9  # share of the speed of plain matrix products, as measured with SmolLM2-135M: docs/doctor.md
_SECONDS = 0.2  # for which matrices are multiplied
_PRECISION = "actor_rollout_ref.actor.fsdp_config.mixed_precision"
_NAMES = {
    "auto": "bfloat16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}  # verl's and vLLM's, that torch does not know


def step_of(setup: Setup) -> Step:
    """Return the sizes of a step. The model's configuration must be on this machine."""
    config, rollout = setup.config, setup.config.actor_rollout_ref.rollout
    reference = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    return Step(
        rollouts=config.data.train_batch_size * rollout.n,
        tokens=_FILLED * (config.data.max_prompt_length + config.data.max_response_length),
        parameters=setup.parameters,
        trained=(setup.section.get("trained_rollouts") or rollout.n) / rollout.n,
        passes=(not setup.bypass) + bool(reference),
        frozen=bool(setup.adapter),
        recomputed=bool(config.actor_rollout_ref.model.enable_gradient_checkpointing),
    )


def seconds_on_gpus(step: Step, gpus: int) -> float:
    """Return the seconds of a step on GPUs like an H100: an assumption, not a measurement."""
    return step.flops() / (H100 * H100_USED * gpus)


@check("speed", "not estimated", "model")
def speed(setup: Setup) -> Iterator[Finding]:
    """Estimate the time of a step; on a CPU, tell of a type in which this processor is slow."""
    config, step = setup.config, step_of(setup)
    told = (
        f"about {_digits(step.flops() / 1e12)} TFLOP a step ({step.rollouts:,} rollouts of {step.tokens:,.0f} tokens, which is half of the "
        f"longest, x {step.parameters / 1e6:,.0f} M parameters)"
    )
    if config.trainer.device == "cpu":
        actor, dtype = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.dtype
        yield from slow_types(
            {
                "actor_rollout_ref.rollout.dtype": dtype,
                f"{_PRECISION}.param_dtype": (actor.fsdp_config.mixed_precision or {}).get("param_dtype"),
            }
        )
        seconds, how = seconds_on_this_cpu(step.flops(), dtype, setup)
    else:
        rollout = config.actor_rollout_ref.rollout
        gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
        gpus += rollout.nnodes * rollout.n_gpus_per_node if separate(config) else 0
        seconds = seconds_on_gpus(step, gpus)
        how = f"{gpus} GPUs, if they are H100 of whose {H100 / 1e12:,.0f} TFLOP/s {100 * H100_USED:.0f} % is used"
    steps = config.trainer.get("total_training_steps")
    whole = f", {duration(seconds * steps)} for {steps:,} steps" if steps else ""
    yield ok(f"{told}: at least {duration(seconds)} a step{whole}, on {how}. Start, searches and measurements come on top")


def seconds_on_this_cpu(flops: float, dtype: str, setup: Setup) -> tuple[float, str]:
    """Return the seconds of so many operations, and at what speed."""
    rates = setup.measured.setdefault("flops", {})
    if dtype not in rates:
        rates[dtype] = measured_flops(dtype)
    return flops / (
        rates[dtype] * _CPU_USED
    ), f"{rates[dtype] / 1e9:,.0f} GFLOP/s in {dtype} here, of which {100 * _CPU_USED:.0f} % is used"


def slow_types(types: Mapping[str, str | None]) -> Iterator[Finding]:
    """Warn of 16-bit types where the processor has no instructions for them. `types`: keys of the recipe, with their values."""
    slow = {key: dtype for key, dtype in types.items() if dtype and width(dtype) < 4}
    if slow and fast_dtype() == "float32":
        yield warning(
            "this processor has no instructions for 16-bit numbers, and converts them at every product",
            ", ".join(f"{key}={dtype}" for key, dtype in slow.items()),
            "Set float32, which is several times as fast here",
        )


def measured_flops(dtype: str) -> float:
    """Return the FLOP/s of matrix products in a type, by its name, on all cores that torch uses."""
    import torch

    kind = getattr(torch, _NAMES.get(dtype, dtype))
    left, right = torch.ones(512, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
    torch.nn.functional.linear(left, right)  # prepares the kernel
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < _SECONDS:
        torch.nn.functional.linear(left, right)
        products += 1
    return 2.0 * products * left.numel() * right.shape[0] / seconds


def duration(seconds: float) -> str:
    """Return a duration as text, in seconds, minutes or hours."""
    if seconds < 120:
        return f"{_digits(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
