"""The likelihood term inside verl's update: what it adds to the gradient, and that it adds nothing without μ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.contract.ranks import run_ranks

SCRIPT = Path(__file__).with_name("memory_gradient.py")
MU = 0.1
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the CPU platform is for Linux")]


def run(tmp_path, ranks: int):
    """Return gradients and metrics of an update on that many ranks."""
    out = tmp_path / f"{ranks}.pt"
    run_ranks(SCRIPT, ranks, [str(tmp_path / f"meet-{ranks}"), str(out)])
    return torch.load(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("gradient"), 1)


def largest(gradient):
    return max(value.abs().max().item() for value in gradient.values())


def difference(one, other, times: float = 1.0):
    return {name: one[name] - times * other[name] for name in one}


def test_the_gradient_grows_by_mu_times_the_supervised_gradient_of_the_same_paths(alone):
    made = alone["gradients"]
    added = difference(made["memory"], made["plain"])
    assert largest(difference(added, made["supervised"], MU)) < 1e-5
    assert largest(added) > 0.1  # it is a gradient
    assert alone["metrics"]["memory_rows"] == [3]
    assert alone["metrics"]["memory_nll"][0] > 1


def test_without_mu_or_without_any_path_the_gradient_is_verls_own_to_the_last_bit(alone):
    made = alone["gradients"]
    assert largest(difference(made["mu_zero"], made["plain"])) == 0.0
    assert largest(difference(made["no_path"], made["plain"])) == 0.0


def test_ranks_with_unequal_numbers_of_paths_add_up_to_the_same_gradient(alone, tmp_path):
    both = run(tmp_path, 2)
    assert both["metrics"]["memory_rows"][0] == 3  # of both together
    made = both["gradients"]
    assert largest(difference(made["plain"], alone["gradients"]["plain"])) < 1e-5
    assert largest(difference(made["memory"], alone["gradients"]["memory"])) < 1e-5
