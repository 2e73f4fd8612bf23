"""`rag-serving serve`: uvicorn around the application, in one process or several that share the port."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from typing import Any

from rag_serving import MissingExtraError, ServingError
from rag_serving.settings import Settings


class AppFactory:
    """Makes the application in a worker; picklable, since workers are spawned."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_dump()
        self._type = type(settings)

    def __call__(self) -> Any:
        from rag_serving.app import create_app

        settings = self._type(**self._settings)
        _prepare_process(settings)
        return create_app(settings)


def _prepare_process(settings: Settings) -> None:
    from rag_serving.operations import configure_logging
    from rag_serving.protocol import TimedProtocol

    configure_logging(settings)
    TimedProtocol.head_timeout_s = settings.receive_timeout_s
    # the engine's thread asks for the interpreter some hundred times a batch; with 5 ms each time it would mostly wait
    sys.setswitchinterval(0.0005)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, finish what was admitted, return the exit code (1: the index cannot be loaded).

    Raises:
        ServingError: the index is missing or damaged, or the port is taken.
        MissingExtraError: a package is not installed.
    """
    # OpenMP's threads wait by spinning. For ever (policy active), torch's and FAISS's take each other's cores and all is four times slower;
    # not at all (passive), each of a model's hundred small steps costs a wake-up. Read when the libraries are loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    try:
        import uvicorn

        from rag_serving.protocol import TimedProtocol
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn") from error
    _prepare_process(settings)
    if settings.index is not None:
        from rag_serving.indexing.manifest import check, read_manifest

        check(settings.index, read_manifest(settings.index), "never")  # what can be seen at once is told at once
    with _listen(settings.host, settings.port) as listener:
        options: dict[str, Any] = {
            "log_config": None, "access_log": False, "http": TimedProtocol,
            "timeout_keep_alive": 75, "timeout_graceful_shutdown": max(1, round(settings.drain_s)), "server_header": False, "backlog": 4096,
        }  # fmt: skip
        if settings.workers == 1:
            return _serve_here(settings, listener, options)
        from uvicorn.config import STARTUP_FAILURE

        folder = tempfile.mkdtemp(prefix="rag-serving-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            # parsing the vocabulary of a large index holds the interpreter for longer than the 5 s after which a worker counts as hung
            config = uvicorn.Config(
                AppFactory(settings), factory=True, workers=settings.workers, timeout_worker_healthcheck=120, **options
            )
            supervisor = _supervisor()(config, sockets=[listener])
            supervisor.run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return int(any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes))


def _supervisor() -> Any:
    from uvicorn.supervisors import Multiprocess

    class Supervisor(Multiprocess):
        def keep_subprocess_alive(self) -> None:
            # With the workers' end of each pipe open here too, a worker that dies while it is asked whether it lives would be waited for
            # as long as one that hangs; closed, the pipe ends with the worker.
            for worker in self.processes:
                worker.child_conn.close()
            super().keep_subprocess_alive()

    return Supervisor


def _serve_here(settings: Settings, listener: socket.socket, options: dict[str, Any]) -> int:
    import uvicorn

    from rag_serving.app import create_app

    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = True
        server.should_exit = True

    server = uvicorn.Server(uvicorn.Config(create_app(settings, on_failure=give_up), **options))
    server.run(sockets=[listener])
    return int(failed)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServingError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
    listener.set_inheritable(True)
    return listener
