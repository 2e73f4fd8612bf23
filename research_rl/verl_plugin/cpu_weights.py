"""Carries the trainer's weights to engines of their own (verl's `separate_async`) on a CPU: through sockets, in the place of NCCL.

The engines ask for one tensor after the other, and each is sent when all of them have asked.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import ray
import torch
import zmq
import zmq.asyncio

WAIT_MS = 600_000  # for the other side, before it counts as dead


class CPUCheckpointEngine:
    """A checkpoint engine of verl: one side of the connection, a rank of the trainer (of which the first sends) or one of an engine."""

    def __init__(self, bucket_size: int, is_master: bool = False, **_: Any) -> None:
        """`is_master`: whether this is the trainer's first rank. `bucket_size` and NCCL's settings have no effect."""
        self._master = is_master
        self._context: Any = zmq.Context() if is_master else zmq.asyncio.Context()
        self._socket: Any = None
        self._engines, self._token = 0, ""

    def prepare(self) -> dict[str, str]:
        """Return the sender's address, and the token of those who may ask; nothing on other ranks."""
        if not self._master:
            return {}
        ip, self._token = ray.util.get_node_ip_address().strip("[]"), secrets.token_hex()
        place = f"tcp://[{ip}]" if ":" in ip else f"tcp://{ip}"
        self._socket = self._made(zmq.ROUTER)
        return {"address": f"{place}:{self._socket.bind_to_random_port(place)}", "token": self._token}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Return the arguments of `init_process_group`: for each rank of the trainer, and for each of the engines."""

        def each(count: int, connects: bool) -> dict[str, list[Any]]:
            values = {**metadata[0], "engines": rollout_world_size, "connects": connects}
            return {name: [value] * count for name, value in values.items()}

        return each(actor_wg_world_size, False), each(rollout_world_size, True)

    def init_process_group(self, address: str, token: str, engines: int, connects: bool) -> None:
        """Connect, if this is an engine's side."""
        self._engines, self._token = engines, token
        if connects:
            self._socket = self._made(zmq.REQ)
            self._socket.connect(address)

    def finalize(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Send each tensor to every engine. Ranks that do not send still have to produce the tensors, together with the first."""
        for name, tensor in weights:
            if self._master:
                whole = tensor.detach().cpu().contiguous()
                head = json.dumps([name, str(whole.dtype).removeprefix("torch."), list(whole.shape)])
                self._answer([head.encode(), whole.view(-1).view(torch.uint8).numpy()])
        if self._master:
            self._answer([b""])

    def _answer(self, frames: list[Any]) -> None:
        """Send these frames to every engine. No engine asks again before it has its answer, so that each has asked once here."""
        asking = []
        while len(asking) < self._engines:
            identity, *_, token = self._socket.recv_multipart()
            if secrets.compare_digest(token, self._token.encode()):
                asking.append(identity)
        for identity in asking:
            self._socket.send_multipart([identity, b"", *frames])

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yield name and tensor, until the trainer has no more."""
        while True:
            await self._socket.send(self._token.encode())
            head, *body = await self._socket.recv_multipart()
            if not head:
                return
            name, dtype, shape = json.loads(head)
            yield name, torch.frombuffer(bytearray(body[0]), dtype=torch.uint8).view(getattr(torch, dtype)).view(shape)

    def _made(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(
            zmq.LINGER, 0
        )  # a process that fails must not wait, at its end, for somebody to take what it has not sent
        socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        socket.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        return socket
