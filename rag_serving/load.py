"""A load generator small enough not to be what is measured: raw HTTP/1.1 over asyncio, one connection per client, closed loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rag_serving import ServingError


@dataclass
class Load:
    """What the clients saw. `seconds`: how long it took in all; `latencies`: seconds of each request with status 200; `statuses`: how many
    requests got which status (0: no answer).
    """

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


@dataclass(frozen=True)
class Target:
    """A service to be asked, and the token for it."""

    url: str
    token: str = ""

    def request(self, path: str, body: object) -> bytes:
        """Return the bytes of a POST."""
        parts = urlsplit(self.url)
        content = json.dumps(body).encode()
        token = f"authorization: Bearer {self.token}\r\n" if self.token else ""
        head = (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{token}"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection.

        Raises:
            ServingError: nobody listens there.
        """
        try:
            parts = urlsplit(self.url)
            secure = parts.scheme == "https"
            return await asyncio.open_connection(
                parts.hostname, parts.port or (443 if secure else 80), ssl=secure or None, limit=1 << 24
            )
        except (OSError, ValueError) as error:
            raise ServingError(f"nothing answers at {self.url} ({error}); give the address of a service as --url") from error


async def _client(target: Target, requests: Iterator[bytes], until: Callable[[], bool], load: Load) -> None:
    reader, writer = await target.connect()
    try:
        for message in requests:
            if until():
                return
            started, status, head = time.perf_counter(), 0, b""
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                writer.write(message)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"content-length:" not in head:
                    raise ServingError(
                        f"{target.url} answers without a content-length; measure the service itself, not its proxy"
                    )
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                status = int(head[9:12])
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies.append(time.perf_counter() - started)
            if not status or b"connection: close" in head:
                writer.close()
                reader, writer = await target.connect()
    finally:
        writer.close()


async def drive(target: Target, clients: int, seconds: float, requests: Callable[[int], Iterator[bytes]]) -> Load:
    """Let `clients` send one request after the other for `seconds`; `requests(i)` is what client i asks.

    Raises:
        ServingError: nobody listens there.
    """
    load, started = Load(), time.perf_counter()

    def over() -> bool:
        return time.perf_counter() - started > seconds

    await asyncio.gather(*(_client(target, requests(i), over, load) for i in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


def queries(index: Path, count: int, words: int = 5, seed: int = 0) -> list[str]:
    """Return up to `count` distinct queries of words from random passages of an index."""
    from rag_serving.corpus import Corpus

    corpus, chosen = Corpus(index), random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(2 * count):  # a small corpus may not have so many
        passage = corpus[chosen.randrange(len(corpus))]["contents"].split()
        found[" ".join(chosen.sample(passage, min(words, len(passage))))] = None
        if len(found) == count:
            break
    return list(found)
