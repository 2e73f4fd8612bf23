"""Our server against the way ReSearch serves, with the same engine, index and machine, in one run.

    python benchmarks/serving.py --index INDEX [--retriever bm25|dense] [--out result.json]

- baseline: what ReSearch's server does (`baseline.py`): FastAPI, one blocking search per request in an `async def`.
- ours: `rag-serving serve`, cache off.
- engine: the retriever alone, given all queries as one batch.

Every client asks one query at a time (closed loop). Then 64 searches at a time go through the trainer's client, which gathers them into
requests; and, as the share of a core that the service leaves to its engine, processor time of the engine alone over that of the service.
Then, with `--repeat n`, n clients ask the same query at about the same time, as n rollouts of one question do, once with and once without
joining identical queries in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

from rag_serving.load import Load, Target, drive, queries

K = 5


def engine_alone(index: Path, retriever: str, asked: list[str]) -> tuple[float, float]:
    """Return queries per second of one big batch, the median of five, and microseconds of processor time of a query."""
    from rag_serving.retrievers import load_index

    engine = load_index(index, retriever=retriever)
    engine.warm_up()
    engine.search(asked[:64], K)
    seconds, spent = [], time.process_time()
    for _ in range(5):
        started = time.perf_counter()
        engine.search(asked, K)
        seconds.append(time.perf_counter() - started)
    return len(asked) / statistics.median(seconds), 1e6 * (time.process_time() - spent) / (5 * len(asked))


class Server:
    """A server of its own process, ready when entered."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        # as shipped: a line is logged for every request
        self._process = subprocess.Popen(command, env=os.environ, stderr=tempfile.TemporaryFile())  # noqa: SIM115

    def __enter__(self) -> int:
        import httpx

        while self._process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return self.port
            except httpx.TransportError:
                time.sleep(0.2)
        raise SystemExit("the server ended before it was ready")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    @property
    def process(self) -> psutil.Process:
        """The server's process."""
        return psutil.Process(self._process.pid)


def ours(index: Path, retriever: str, *flags: str) -> Server:
    """Return our server, cache off."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "rag_serving.cli",
        "serve",
        "--index",
        str(index),
        "--retriever",
        retriever,
        "--port",
        str(port),
    ]
    return Server([*command, "--cache-mb", "0", "--verify", "never", *flags], port)


def theirs(index: Path, retriever: str) -> Server:
    """Return the baseline's server."""
    port = free_port()
    return Server([sys.executable, str(Path(__file__).with_name("baseline.py")), str(index), retriever, str(port)], port)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(port: int, clients: int, seconds: float, asked: list[str], repeat: int = 1) -> Load:
    """Drive a server, after a second that is not measured: connections are made in it, threads started."""
    one_by_one(port, clients, 1.0, asked, repeat)
    return one_by_one(port, clients, seconds, asked, repeat)


def one_by_one(port: int, clients: int, seconds: float, asked: list[str], repeat: int = 1) -> Load:
    """Let clients ask one query at a time; those of a group of `repeat` ask the same ones in the same order."""
    target = Target(f"http://127.0.0.1:{port}")

    def requests(client: int) -> Iterator[bytes]:
        chosen = random.Random(client // repeat)
        while True:
            yield target.request("/search", {"query": chosen.choice(asked), "top_n": K})

    return asyncio.run(drive(target, clients, seconds, requests))


def gathered(port: int, seconds: float, asked: list[str], searches: int = 64) -> int:
    """Search through the trainer's client, `searches` at a time; return how many were answered."""
    from research_rl.retrieval import RetrievalClient, RetrievalSettings

    async def run() -> int:
        done, end = 0, time.perf_counter() + seconds
        async with RetrievalClient(RetrievalSettings(url=f"http://127.0.0.1:{port}")) as client:

            async def one(number: int) -> None:
                nonlocal done
                chosen = random.Random(number)
                while time.perf_counter() < end:
                    await client.search([chosen.choice(asked)], K)
                    done += 1

            await asyncio.gather(*(one(number) for number in range(searches)))
        return done

    return asyncio.run(run())


def costs(server: Server, seconds: float, drive_it: Callable[[float], int]) -> dict[str, float]:
    """Return queries per second, and microseconds of processor time of a query: the service's and the client's."""
    drive_it(1.0)
    before, own, started = server.process.cpu_times(), time.process_time(), time.perf_counter()
    done = drive_it(seconds)
    took, own, after = time.perf_counter() - started, time.process_time() - own, server.process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return {"per_second": done / took, "service_us": 1e6 * spent / done, "client_us": 1e6 * own / done}


def main() -> None:
    """Run and print a table; write everything to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="directory made by `rag-serving index`")
    parser.add_argument("--retriever", default="bm25", choices=("bm25", "dense", "hybrid"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=1, help="processes of our server")
    parser.add_argument("--repeat", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from rag_serving.indexing import read_manifest

    asked = queries(options.index, 20_000)
    result: dict = {
        "retriever": options.retriever,
        "passages": read_manifest(options.index)["passages"],
        "k": K,
        "workers": options.workers,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "rows": [],
    }
    engine = [engine_alone(options.index, options.retriever, asked[:1_000])]
    steps = tqdm(total=2 * len(options.clients) + 2, desc="measuring", disable=None)
    measured: dict[str, dict[int, Load]] = {"baseline": {}, "ours": {}}
    flags = ("--workers", str(options.workers))
    servers = {"baseline": theirs(options.index, options.retriever), "ours": ours(options.index, options.retriever, *flags)}
    for name, server in servers.items():
        with server as port:
            for clients in options.clients:
                measured[name][clients] = measure(port, clients, options.seconds, asked)
                steps.update()
    engine.append(engine_alone(options.index, options.retriever, asked[:1_000]))  # before and after: machines drift
    result["engine_per_second"], result["engine_us"] = (sum(both) / 2 for both in zip(*engine, strict=True))
    for clients in options.clients:
        a, b = measured["baseline"][clients], measured["ours"][clients]
        result["rows"].append(
            {
                "clients": clients,
                "baseline_per_second": a.per_second,
                "ours_per_second": b.per_second,
                "ratio": b.per_second / a.per_second,
                "of_engine": b.per_second / result["engine_per_second"],
                "baseline_p50_ms": a.percentile(0.5),
                "baseline_p99_ms": a.percentile(0.99),
                "ours_p50_ms": b.percentile(0.5),
                "ours_p99_ms": b.percentile(0.99),
            }
        )
    server = ours(options.index, options.retriever, *flags)
    with server as port:
        result["one_by_one"] = costs(server, options.seconds, lambda s: one_by_one(port, 64, s, asked).statuses.get(200, 0))
        result["gathered"] = costs(server, options.seconds, lambda s: gathered(port, s, asked))
    for joined in ("true", "false"):
        with ours(options.index, options.retriever, *flags, "--deduplicate", joined) as port:
            result[f"repeated_{options.repeat}_joined_{joined}"] = measure(
                port, 64, options.seconds, asked, options.repeat
            ).per_second
            steps.update()
    steps.close()
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    shape = f"{result['passages']} passages, {options.retriever}, {result['cores']} cores, {options.workers} workers"
    print(f"{shape}; engine alone {result['engine_per_second']:.0f}/s")
    print("clients  baseline/s   ours/s  ratio  of engine   baseline p50, p99 ms     ours p50, p99 ms")
    for row in result["rows"]:
        print(
            f"{row['clients']:>7}{row['baseline_per_second']:>12.0f}{row['ours_per_second']:>9.0f}{row['ratio']:>7.1f}{row['of_engine']:>11.2f}"
            f"{row['baseline_p50_ms']:>13.1f}{row['baseline_p99_ms']:>10.1f}{row['ours_p50_ms']:>12.1f}{row['ours_p99_ms']:>9.1f}"
        )
    engine_us = result["engine_us"]
    for name, told in (("one by one", result["one_by_one"]), ("gathered by the trainer's client", result["gathered"])):
        print(
            f"64 searches, {name}: {told['per_second']:.0f}/s; processor time of a query {told['service_us']:.0f} us in the service, "
            f"{engine_us / told['service_us']:.2f} of it the engine's {engine_us:.0f}; {told['client_us']:.0f} in the client"
        )
    with_, without = (result[f"repeated_{options.repeat}_joined_{joined}"] for joined in ("true", "false"))
    print(
        f"64 clients, each query from {options.repeat} of them: {with_:.0f}/s joined, {without:.0f}/s not ({with_ / without:.1f}x)"
    )


if __name__ == "__main__":
    main()
