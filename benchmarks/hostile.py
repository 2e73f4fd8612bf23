"""Hostile requests against a running server for some minutes: no 500, no hang, memory flat.

rag-serving serve --index INDEX --port 8000 --receive-timeout-s 2 &
python benchmarks/hostile.py --port 8000 --pid $! --minutes 30
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

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
    form = chosen.choice([
        {"query": text, "top_n": number}, {"query": texts, "top_n": number, "return_score": True}, {"queries": texts, "k": number},
        {"queries": texts, "topk": number, "return_scores": chosen.choice([True, "no", 3])}, {"queries": texts, "top_k": number}, {}, texts,
    ])  # fmt: skip
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


def attack(port: int, seed: int, until: float, seen: Counter, slowest: list[float]) -> None:
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
            slowest[0] = max(slowest[0], time.monotonic() - started)
        except TimeoutError:
            seen["HANG"] += 1
        except OSError:
            seen["closed"] += 1


def main(report: Callable[[str], None] = print) -> None:
    """Attack with 24 threads and report every half minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    until, seen, slowest = time.monotonic() + 60 * options.minutes, Counter(), [0.0]
    server = psutil.Process(options.pid)
    threads = [threading.Thread(target=attack, args=(options.port, seed, until, seen, slowest)) for seed in range(24)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        report(
            f"{server.memory_info().rss / 1e6:.0f} MB, {server.num_fds()} descriptors, slowest {slowest[0]:.1f} s, {dict(seen)}"
        )
        time.sleep(min(30, max(1.0, until - time.monotonic() + 1)))
    for thread in threads:
        thread.join()
    report(f"end: {server.memory_info().rss / 1e6:.0f} MB, {dict(seen)}")


if __name__ == "__main__":
    main()
