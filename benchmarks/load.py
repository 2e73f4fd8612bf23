"""A load generator small enough not to be what is measured: raw HTTP/1.1 over asyncio, one connection per client, closed loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Load:
    """What the clients saw: seconds of each answered request, and how many were answered with which status."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Requests answered with 200, per second."""
        return self.statuses.get(200, 0) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds within which `share` of the requests with status 200 were answered."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def request(path: str, body: object) -> bytes:
    """Return the bytes of a POST."""
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        + content
    )


async def _client(port: int, requests: Iterator[bytes], until: Callable[[], bool], load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for message in requests:
            if until():
                return
            started = time.perf_counter()
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies.append(time.perf_counter() - started)
    finally:
        writer.close()


async def drive(port: int, clients: int, seconds: float, requests: Callable[[int], Iterator[bytes]]) -> Load:
    """Let `clients` ask one request after the other for `seconds`; `requests(i)` is what client i asks."""
    load, started = Load(), time.perf_counter()

    def over() -> bool:
        return time.perf_counter() - started > seconds

    await asyncio.gather(*(_client(port, requests(i), over, load) for i in range(clients)))
    load.seconds = time.perf_counter() - started
    return load
