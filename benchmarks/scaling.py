"""``python -m benchmarks.scaling --index INDEX``: more workers behind a port, and two services behind a balancer, one of which is killed.

Queries per second of `rag-serving serve` with 1, 2 and 4 workers, and of HAProxy (docker/haproxy.cfg) in front of two services of one
worker. Then a worker, or a service, is killed (SIGKILL) while clients ask: how many requests were cut off, and how many questions did the
trainer's client lose, which asks again? Clients run on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import K, Server, free_port, measure, ours
from rag_serving.load import Target, drive, queries
from research_rl.cpu import hardware
from research_rl.errors import RetrievalError
from research_rl.retrieval import RetrievalClient, RetrievalSettings

BALANCER = Path(__file__).parents[1] / "docker" / "haproxy.cfg"
CLIENTS = 32


def balancer(ports: list[int]) -> Server:
    """Return HAProxy in front of two services."""
    port = free_port()
    places = {f"SERVICE_{number}": f"127.0.0.1:{one}" for number, one in enumerate(ports, 1)}
    return Server(
        [
            "env",
            f"LISTEN=127.0.0.1:{port}",
            *(f"{key}={value}" for key, value in places.items()),
            "haproxy",
            "-f",
            str(BALANCER),
        ],
        port,
    )


def worker_of(server: Server) -> psutil.Process:
    """Return a worker of a service, or the service if it is one process."""
    found = [one for one in server.process.children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]
    return found[-1] if found else server.process


def killed(port: int, victim: psutil.Process, asked: list[str]) -> dict[str, Any]:
    """Kill a process while clients ask; return what they saw."""
    target, settings = Target(f"http://127.0.0.1:{port}"), RetrievalSettings(url=f"http://127.0.0.1:{port}")

    def requests(client: int) -> Iterator[bytes]:
        chosen = random.Random(client)
        while True:
            yield target.request("/v1/search", {"queries": [chosen.choice(asked)], "top_k": K})

    async def trainer() -> tuple[int, list[str]]:
        done, lost = 0, []
        async with RetrievalClient(settings) as client:

            async def one(number: int) -> None:
                nonlocal done
                chosen = random.Random(number)
                while time.perf_counter() < end:
                    try:
                        await client.search([chosen.choice(asked)], K)
                        done += 1
                    except RetrievalError as failure:
                        lost.append(str(failure))

            await asyncio.gather(*(one(number) for number in range(CLIENTS)))
        return done, lost

    async def both() -> tuple[Any, tuple[int, list[str]]]:
        asyncio.get_running_loop().call_later(3, victim.kill)
        return await asyncio.gather(drive(target, CLIENTS, 8, requests), trainer())

    end = time.perf_counter() + 8
    load, (done, lost) = asyncio.run(both())
    return {"statuses": load.statuses, "asked_by_the_trainers_client": done, "lost": len(lost), "why": lost[:3]}


def main() -> None:
    """Run and print; write everything to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="directory made by `rag-serving index`")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    asked = queries(options.index, 20_000)
    result: dict[str, Any] = {"hardware": hardware(), "cores": len(os.sched_getaffinity(0))}
    for name, workers in (("1 worker", [1]), ("2 workers", [2]), ("4 workers", [4]), ("2 services, HAProxy", [1, 1])):
        with ExitStack() as stack:
            servers = [ours(options.index, "bm25", "--workers", str(count)) for count in workers]
            ports = [stack.enter_context(server) for server in servers]
            port = ports[0] if len(ports) == 1 else stack.enter_context(balancer(ports))
            loads = {clients: measure(port, clients, options.seconds, asked) for clients in (1, 16, 64)}
            result[name] = {
                str(clients): {"per_second": one.per_second, "p99_ms": one.percentile(0.99)} for clients, one in loads.items()
            }
            if name != "1 worker":
                result[name]["killed"] = killed(port, worker_of(servers[0]), asked)
            print(name, json.dumps(result[name]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
