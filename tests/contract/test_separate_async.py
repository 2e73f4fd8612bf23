"""verl's `separate_async` with engines on devices of their own only."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("verl", reason="needs the extra train")

from research_rl.verl_plugin.separate_async import install


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
