"""verl's `separate_async` with engines on devices of their own only."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("verl", reason="needs the extra train")

import torch
import wrapt

from research_rl.verl_plugin.separate_async import install, keep_copies


def test_verl_still_logs_with_an_argument_that_logging_does_not_take():
    from verl.trainer.ppo.v1 import trainer_separate_async

    assert "flush=True" in inspect.getsource(trainer_separate_async.PPOTrainerSeparateAsync._setup)
    trainer_separate_async.logger.info("one line", flush=True)  # the plugin has replaced it


def test_the_logger_ignores_that_argument_and_nothing_else(caplog):
    module = SimpleNamespace(logger=logging.getLogger("somebody's"))
    with pytest.raises(TypeError):
        module.logger.warning("a line", flush=True)
    install(module)
    module.logger.warning("%s replicas", 3, flush=True)
    assert [record.getMessage() for record in caplog.records] == ["3 replicas"]
    with pytest.raises(TypeError):
        module.logger.warning("a line", colour="red")


def test_verl_still_puts_aside_weights_on_a_cpu_as_they_are_and_the_plugin_copies_them(monkeypatch):
    from verl.utils import fsdp_utils

    class Sharded(torch.nn.Parameter):  # as much of a DTensor as verl reads
        _spec = SimpleNamespace(device_mesh=None, placements=None)

        @property
        def _local_tensor(self):
            return self.data

    weights = torch.nn.Parameter(torch.zeros(3)), Sharded(torch.zeros(3))
    model = SimpleNamespace(named_parameters=lambda: zip(("plain", "sharded"), weights, strict=True))
    monkeypatch.setattr(fsdp_utils, "DTensor", Sharded)
    mended = fsdp_utils.fsdp2_sharded_save_to_cpu
    assert isinstance(mended, wrapt.FunctionWrapper)
    monkeypatch.setattr(fsdp_utils, "fsdp2_sharded_save_to_cpu", mended.__wrapped__)
    before, _ = fsdp_utils.fsdp2_sharded_save_to_cpu(model)
    keep_copies(fsdp_utils)
    copies, _ = fsdp_utils.fsdp2_sharded_save_to_cpu(model)
    for weight in weights:
        weight.data.add_(1)  # an update
    assert [state["sharded"][0].sum() for state in (before, copies)] == [3, 0]
    assert [state["plain"][0].sum() for state in (before, copies)] == [3, 0]
