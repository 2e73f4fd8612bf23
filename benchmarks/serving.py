"""Our server against the way ReSearch serves, with the same engine, index and machine, in one run.

    python benchmarks/serving.py --index INDEX [--retriever bm25|dense] [--out result.json]

- baseline: what ReSearch's server does (`baseline.py`): FastAPI, one blocking search per request in an `async def`.
- ours: `rag-serving serve`, cache off.
- engine: the retriever alone, given all queries as one batch.

Every client asks one query at a time (closed loop). `--repeat n`: n clients ask the same query at about the same time, as n rollouts of
one question do, once with and once without joining identical queries in flight.
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
from collections.abc import Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

from rag_serving.load import Load, Target, drive, queries

K = 5


def engine_alone(index: Path, retriever: str, asked: list[str]) -> float:
    """Return queries per second of one big batch, the median of five."""
    from rag_serving.retrievers import load_index

    engine = load_index(index, retriever=retriever)
    engine.warm_up()
    engine.search(asked[:64], K)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        engine.search(asked, K)
        seconds.append(time.perf_counter() - started)
    return len(asked) / statistics.median(seconds)


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
    """Drive a server; clients in groups of `repeat` ask the same queries in the same order."""

    target = Target(f"http://127.0.0.1:{port}")

    def requests(client: int) -> Iterator[bytes]:
        chosen = random.Random(client // repeat)
        while True:
            yield target.request("/search", {"query": chosen.choice(asked), "top_n": K})

    asyncio.run(drive(target, clients, 1.0, requests))  # connections made, threads started
    return asyncio.run(drive(target, clients, seconds, requests))


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
        "retriever": options.retriever, "passages": read_manifest(options.index)["passages"], "k": K, "workers": options.workers,
        "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(), "rows": [],
    }  # fmt: skip
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
    result["engine_per_second"] = sum(engine) / 2
    for clients in options.clients:
        a, b = measured["baseline"][clients], measured["ours"][clients]
        result["rows"].append({
            "clients": clients, "baseline_per_second": a.per_second, "ours_per_second": b.per_second, "ratio": b.per_second / a.per_second,
            "of_engine": b.per_second / result["engine_per_second"], "baseline_p50_ms": a.percentile(0.5),
            "baseline_p99_ms": a.percentile(0.99), "ours_p50_ms": b.percentile(0.5), "ours_p99_ms": b.percentile(0.99),
        })  # fmt: skip
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
    with_, without = (result[f"repeated_{options.repeat}_joined_{joined}"] for joined in ("true", "false"))
    print(
        f"64 clients, each query from {options.repeat} of them: {with_:.0f}/s joined, {without:.0f}/s not ({with_ / without:.1f}x)"
    )


if __name__ == "__main__":
    main()
