"""Our engine for CPUs does what verl's does: packed rows against padded ones, with verl's own losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from research_rl.cpu import CPU_ENGINE
from tests.contract.ranks import WEIGHTS, run_ranks

pytestmark = pytest.mark.slow
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    run_ranks(
        Path(__file__).with_name("packed_update.py"), request.param, [str(folder / "rendezvous"), str(folder / "made.pt")]
    )
    return request.param, torch.load(folder / "made.pt", weights_only=False)


def test_log_probabilities_and_entropies_of_the_targets_are_verls_and_zero_elsewhere(made):
    _, both = made
    assert both[True]["attention"] == "research_rl_packed"
    assert both[False]["attention"] == "sdpa"
    for name in ("log_probs", "entropy"):
        for ours, verls, targets in zip(both[True][name], both[False][name], both[True]["targets"], strict=True):
            torch.testing.assert_close(ours[targets], verls[targets], atol=2e-4, rtol=1e-4)
            assert not ours[~targets].any()
            assert verls[~targets].any() or not (~targets).any()


@pytest.mark.parametrize("loss", ["policy", "policy_and_entropy", "supervised"])
def test_the_gradient_is_verls(made, loss):
    _, both = made
    for name, gradient in both[False][loss].items():
        torch.testing.assert_close(both[True][loss][name], gradient, atol=3e-5, rtol=2e-3)
    assert any(gradient.abs().max() > 1e-3 for gradient in both[True][loss].values())


def test_rows_without_an_advantage_are_computed_only_where_they_have_a_gradient_or_other_ranks_wait(made):
    ranks, both = made
    left_out = both[False]["rows_policy_and_entropy"] - both[True]["rows_policy"]
    assert left_out == (2 if ranks == 1 else 0)
    assert both[True]["rows_policy_and_entropy"] == both[False]["rows_policy_and_entropy"]


def test_a_reference_model_is_run_where_there_is_no_accelerator_to_offload_it_from(tmp_path):
    from transformers import AutoModelForCausalLM

    run_ranks(Path(__file__).with_name("reference_model.py"), 1, [str(tmp_path / "rendezvous"), str(tmp_path / "logits.pt")])
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.arange(10, 42)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=2e-4, rtol=1e-4)


def test_what_an_update_leaves_in_the_heap_goes_back_to_the_system():
    """In a process of its own: the heap's settings are read at its start."""
    code = """
import gc, psutil
from research_rl.verl_plugin.cpu_engine import give_back_memory
used = lambda: psutil.Process().memory_info().rss / 2**20
blocks = [b"x" * (1 << 20) for _ in range(600)]
held = blocks[::50]  # holes between what stays
del blocks
gc.collect()
before = used()
give_back_memory()
print(before - used())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **CPU_ENGINE}
    )
    assert float(done.stdout.split()[-1]) > 400  # MiB
