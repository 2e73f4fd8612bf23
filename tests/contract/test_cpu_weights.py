"""Weights on their way to engines of their own, over real sockets."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("verl", reason="needs the extra train")

import torch
import zmq

from research_rl.verl_plugin import cpu_weights
from research_rl.verl_plugin.cpu_platform import _register_weight_transfer
from research_rl.verl_plugin.cpu_weights import CPUCheckpointEngine

WEIGHTS = [
    ("embedding", torch.randn(50, 8)),
    ("half", torch.randn(3, 4).bfloat16()),
    ("turned", torch.randn(4, 6).T),
    ("one", torch.tensor(2.5)),
    ("whole", torch.arange(5)),
]


@pytest.fixture
def sides(monkeypatch):
    """The trainer's two ranks and three engines, connected."""
    monkeypatch.setattr(cpu_weights.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(cpu_weights, "WAIT_MS", 5_000)
    trainer = [CPUCheckpointEngine(1, is_master=True), CPUCheckpointEngine(1)]
    engines = [CPUCheckpointEngine(1) for _ in range(3)]
    metadata = [side.prepare() for side in (*trainer, *engines)]
    of_trainer, of_engines = CPUCheckpointEngine.build_topology(2, 3, metadata)
    for arguments, group in ((of_trainer, trainer), (of_engines, engines)):
        for rank, side in enumerate(group):
            side.init_process_group(**{name: values[rank] for name, values in arguments.items()})
    yield trainer, engines, metadata[0]
    for side in (*trainer, *engines):
        side.finalize()


async def received(engine, pause: float) -> list[tuple[str, torch.Tensor]]:
    found = []
    async for name, tensor in engine.receive_weights():
        found.append((name, tensor))
        await asyncio.sleep(pause)
    return found


def test_every_engine_gets_every_tensor_once_however_slow_the_others_are(sides):
    trainer, engines, _ = sides
    sending = threading.Thread(target=lambda: [asyncio.run(side.send_weights(iter(WEIGHTS))) for side in trainer])
    sending.start()

    async def together():
        return await asyncio.gather(*(received(engine, pause) for engine, pause in zip(engines, (0, 0.02, 0.05), strict=True)))

    for found in asyncio.run(together()):
        assert [name for name, _ in found] == [name for name, _ in WEIGHTS]
        for (_, got), (_, sent) in zip(found, WEIGHTS, strict=True):
            assert got.dtype == sent.dtype
            assert torch.equal(got, sent)
    sending.join()


def test_who_does_not_know_the_token_gets_nothing_and_disturbs_nobody(sides):
    trainer, engines, metadata = sides
    with zmq.Context() as context, context.socket(zmq.REQ) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(metadata["address"])
        stranger.send(b"give me the weights")
        sending = threading.Thread(target=lambda: asyncio.run(trainer[0].send_weights(iter(WEIGHTS))))
        sending.start()

        async def together():
            return await asyncio.gather(*(received(engine, 0) for engine in engines))

        assert [len(found) for found in asyncio.run(together())] == [5, 5, 5]
        sending.join()
        assert not stranger.poll(100)


def test_verl_finds_it_where_a_recipe_asks_for_nccl_and_it_has_what_verl_asks_for(monkeypatch):
    import verl.checkpoint_engine as module
    from verl.checkpoint_engine.base import CheckpointEngine

    monkeypatch.setattr(module.CheckpointEngineRegistry, "_registry", {})
    _register_weight_transfer(module)
    assert module.CheckpointEngineRegistry.get("nccl") is CPUCheckpointEngine
    asked = {name for name, value in vars(CheckpointEngine).items() if getattr(value, "__isabstractmethod__", False)}
    assert {"prepare", "build_topology", "send_weights", "receive_weights"} <= asked <= set(vars(CPUCheckpointEngine))


def test_a_side_that_would_wait_for_ever_is_an_error(sides, monkeypatch):
    monkeypatch.setattr(cpu_weights, "WAIT_MS", 50)
    trainer, engine = CPUCheckpointEngine(1, is_master=True), CPUCheckpointEngine(1)
    where = trainer.prepare()
    trainer.init_process_group(**where, engines=1, connects=False)
    engine.init_process_group(**where, engines=1, connects=True)
    with pytest.raises(zmq.Again):
        asyncio.run(trainer.send_weights(iter(WEIGHTS)))  # nobody asks
    with pytest.raises(zmq.Again):
        asyncio.run(received(engine, 0))  # nobody answers
    for side in (trainer, engine):
        side.finalize()
