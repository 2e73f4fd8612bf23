"""Attacks on a running server for some minutes: no 500, no hang, memory flat, and a client of good manners who is still served.

rag-serving serve --index INDEX --port 8000 --receive-timeout-s 2 --send-timeout-s 5 &
python benchmarks/hostile.py --port 8000 --pid $! --minutes 30 [--attacks heads silence]

Attacks: `nonsense` (what is no request, or a wrong one), `heads` (a head that does not end), `silence` (connections that say nothing),
`deaf` (large answers that nobody reads), `large` (as many long queries as a request may hold).
Meanwhile `/search` and `/readyz` are asked once a second; the slowest answer of each is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import psutil

PATHS = ("/search", "/batch_search", "/queries", "/retrieve", "/v1/search", "/health", "/metrics", "/", "/%00", "/search/../x")
TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "a" * 1_000_000,
    "a" * 20_000,
    "日本語",
    "\u202e",
    "'; DROP TABLE",
    "{{7*7}}",
    "word",
    "the of",
    "\n" * 99,
)
NUMBERS = (0, -1, 1, 5, 1_000, 10**9, 10**400, 1.5, float("nan"), True, None, "7", [], {})


def body(chosen: random.Random) -> bytes:
    """Return a request's body: mostly JSON, mostly wrong."""
    text: object = chosen.choice([*TEXTS, None, 7, ["nested"], {"a": 1}])
    texts: object = chosen.choice(
        [
            [text],
            [text] * chosen.choice([0, 2, 2_000 if not isinstance(text, str) or len(text) < 100 else 3]),
            text,
            [],
            ["fine", text],
        ]
    )
    number = chosen.choice(NUMBERS)
    form = chosen.choice(
        [
            {"query": text, "top_n": number},
            {"query": texts, "top_n": number, "return_score": True},
            {"queries": texts, "k": number},
            {"queries": texts, "topk": number, "return_scores": chosen.choice([True, "no", 3])},
            {"queries": texts, "top_k": number},
            {},
            texts,
        ]
    )
    raw = json.dumps(form).encode()
    return chosen.choice(
        [raw] * 12 + [raw[: len(raw) // 2], b"", b"[" * 50_000, bytes(chosen.randrange(256) for _ in range(200)), b"\xff\xfe"]
    )


def request(chosen: random.Random) -> bytes:
    """Return a request, or something like one."""
    content = body(chosen)
    length = chosen.choice([len(content)] * 10 + [len(content) + 50, 0, 10**12, -1])
    method = chosen.choice(["POST"] * 8 + ["GET", "PUT", "OPTIONS", "BREW"])
    head = f"{method} {chosen.choice(PATHS)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += chosen.choice(
        [f"content-length: {length}\r\n\r\n"] * 10
        + ["transfer-encoding: chunked\r\n\r\n", f"x: {'y' * 70_000}\r\n\r\n", "\r\n"]
    )
    return head.encode() + content


def nonsense(port: int, seed: int, until: float, seen: Counter, slowest: dict[str, float]) -> None:
    """Send until the time is over; sometimes leave, or stop half-way."""
    chosen = random.Random(seed)
    while time.monotonic() < until:
        message, started = request(chosen), time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                manner = chosen.random()
                if manner < 0.1:  # leaves before the answer
                    connection.sendall(message[: chosen.randrange(1, len(message))])
                    seen["left"] += 1
                    continue
                connection.sendall(message)
                answer = connection.recv(64)
            seen[answer[9:12].decode("latin-1") or "closed"] += 1
            slowest["nonsense"] = max(slowest["nonsense"], time.monotonic() - started)
        except TimeoutError:
            seen["HANG"] += 1
        except OSError:
            seen["closed"] += 1


def post(path: str, form: object) -> bytes:
    """Return a well-formed request."""
    content = json.dumps(form).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def heads(port: int, seed: int, until: float, seen: Counter, slowest: dict[str, float]) -> None:
    """Send one header of 76 MB again and again."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nx: ")
            for _ in range(760):
                connection.sendall(b"y" * 100_000)
            seen["head taken whole"] += 1
        seen["heads"] += 1


def silence(port: int, seed: int, until: float, seen: Counter, slowest: dict[str, float]) -> None:
    """Keep 300 connections that say nothing; what the server closes is opened again."""
    held: list[socket.socket] = []
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            seen["silent"] += 1
        if len(held) > 300:
            held.pop(0).close()
        time.sleep(0.002)
    for connection in held:
        connection.close()


def deaf(port: int, seed: int, until: float, seen: Counter, slowest: dict[str, float]) -> None:
    """Ask for the largest answer on 20 connections and read none."""
    asked = post("/retrieve", {"queries": [f"first new city year world people {seed} {i}" for i in range(20)], "topk": 1_000})
    while time.monotonic() < until:
        held = []
        for _ in range(20):
            with contextlib.suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                held[-1].sendall(asked)
                seen["deaf"] += 1
        time.sleep(min(10, max(0.0, until - time.monotonic())))
        for connection in held:
            connection.close()


def large(port: int, seed: int, until: float, seen: Counter, slowest: dict[str, float]) -> None:
    """Ask 1,024 long queries at once, each time others."""
    chosen = random.Random(seed)
    while time.monotonic() < until:
        queries = [" ".join(f"w{chosen.randrange(10**4)}" for _ in range(1_000)) for _ in range(1_024)]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(post("/retrieve", {"queries": queries, "topk": 3}))
            seen[f"large {connection.recv(64)[9:12].decode('latin-1')}"] += 1


def probe(port: int, path: str, until: float) -> tuple[float, Counter]:
    """Ask once a second, on a new connection each time; return the slowest answer's seconds and the statuses. In a process of its own."""
    number, slowest, seen = 0, 0.0, Counter()
    while time.monotonic() < until:
        number, started = number + 1, time.monotonic()
        told = "unanswered"
        message = (
            post(path, {"query": f"the answer {number}"})
            if path == "/search"
            else f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(message)
            told = connection.recv(64)[9:12].decode("latin-1") or "closed"
        seen[told] += 1
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(max(0.0, started + 1 - time.monotonic()))
    return slowest, seen


ATTACKS = {
    "nonsense": (nonsense, 24),
    "heads": (heads, 2),
    "silence": (silence, 5),
    "deaf": (deaf, 2),
    "large": (large, 1),
}  # and threads


def main(report: Callable[[str], None] = print) -> None:
    """Attack with some threads each and report every half minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="default: all")
    options = parser.parse_args()
    paths = ("/search", "/readyz")
    with ProcessPoolExecutor(len(paths)) as processes:  # the attackers' threads would hold them up
        until = time.monotonic() + 60 * options.minutes
        probes = [processes.submit(probe, options.port, path, until) for path in paths]
        attack(options, until, report)
        for path, asked in zip(paths, probes, strict=True):
            slowest, seen = asked.result()
            report(f"{path}: slowest {slowest:.1f} s, {dict(seen)}")


def attack(options: argparse.Namespace, until: float, report: Callable[[str], None]) -> None:
    """Run the attacks that are asked for until the time is over."""
    seen, slowest = Counter(), defaultdict(float)
    server = psutil.Process(options.pid)
    threads = [
        threading.Thread(target=one, args=(options.port, seed, until, seen, slowest))
        for one, count in map(ATTACKS.__getitem__, options.attacks)
        for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        report(
            f"{server.memory_info().rss / 1e6:.0f} MB, {server.num_fds()} descriptors, slowest {told(slowest)}, {dict(seen)}"
        )
        time.sleep(min(30, max(1.0, until - time.monotonic() + 1)))
    for thread in threads:
        thread.join()
    report(f"end: {server.memory_info().rss / 1e6:.0f} MB, slowest {told(slowest)}, {dict(seen)}")


def told(slowest: dict[str, float]) -> str:
    """Return the slowest answers, in seconds."""
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in list(slowest.items()))


if __name__ == "__main__":
    main()
