"""`rag-serving serve`: uvicorn around the application, in one process or several that share the port."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rag_serving import MissingExtraError, ServingError
from rag_serving.ending import GRACE_S, LEFT_BEHIND, Ending
from rag_serving.settings import Settings

log = logging.getLogger("rag_serving")


class AppFactory:
    """Makes the application in a worker; picklable, since workers are spawned. `index_ids`: what it has to serve, by the indexes' names."""

    def __init__(self, settings: Settings, index_ids: dict[str, str]) -> None:
        self._settings, self.index_ids = settings.model_dump(), index_ids
        self._type = type(settings)

    def __call__(self) -> Any:
        settings = self._type(**self._settings)
        _prepare_process(settings)
        return _reloadable(settings, Ending(settings.drain_s), self.index_ids)


class _Expecting:
    """Loads what the settings name; an index for the first time only if it is the one that the other workers serve."""

    def __init__(self, index_ids: dict[str, str], directories: Iterable[Path]) -> None:
        """`directories`: of all indexes, for the line that tells why the process ended."""
        self._index_ids, self._directories = dict(index_ids), tuple(directories)

    def __call__(self, settings: Settings, report: Any) -> Any:
        from rag_serving.cut_off import tell_bus_errors
        from rag_serving.retrievers import open_retriever

        if self._directories:
            tell_bus_errors(self._directories)
        opened = open_retriever(settings, report)
        expected = self._index_ids.get(settings.names[0], opened.index_id)
        if expected != opened.index_id:
            raise ServingError(
                f"{settings.directory} holds index {opened.index_id} now, and the other workers serve {expected}; "
                "send SIGHUP to rag-serving, and all of them load it"
            )
        self._index_ids.pop(settings.names[0], None)
        return opened


def _nothing() -> None:
    """Before the application runs there is nothing to load again."""


def _reloadable(settings: Settings, ending: Ending, index_ids: dict[str, str] | None = None, on_failure: Any = None) -> Any:
    """Return the application; from now on SIGHUP makes this process load the index again, or ends it if its terminal was closed."""
    from rag_serving.app import create_app

    app = create_app(settings, _Expecting(index_ids or {}, settings.index.values()), on_failure, ending)
    terminal = Terminal()

    def hang_up(*_: Any) -> None:
        if terminal.closed():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            getattr(app.state, "reload", _nothing)()

    signal.signal(signal.SIGHUP, hang_up)
    return app


class Terminal:
    """The terminal that a process was started from. When it is closed, the process gets SIGHUP, as by `kill -HUP`."""

    def __init__(self) -> None:
        # nohup ignores the signal: who starts us so means us to stay
        self._mine = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and self._there()

    def closed(self) -> bool:
        """Return whether it was closed; False where there was none, or it does not matter."""
        return self._mine and not self._there()

    @staticmethod
    def _there() -> bool:
        try:
            os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
        except OSError:
            return False
        return True


def _prepare_process(settings: Settings) -> None:
    from rag_serving.logs import configure_logging

    configure_logging(settings)
    # the engine's thread asks for the interpreter some hundred times a batch; with 5 ms each time it would mostly wait
    sys.setswitchinterval(0.0005)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, finish what was admitted, return the exit code (1: the index cannot be loaded, or a worker was killed
    or left threads behind).

    Raises:
        ServingError: the index is missing or damaged, or the port is taken.
        MissingExtraError: a package is not installed.
    """
    # OpenMP's threads wait by spinning. For ever (policy active), torch's and FAISS's take each other's cores and all is four times slower;
    # not at all (passive), each of a model's hundred small steps costs a wake-up. Read when the libraries are loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    try:
        import uvicorn

        from rag_serving.listening import listen, uvicorn_options
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn") from error
    _prepare_process(settings)
    index_ids = _checked(settings)  # what can be seen at once is told at once
    with listen(settings.host, settings.port) as listener:
        options = uvicorn_options(settings)
        if settings.workers == 1:
            return _serve_here(settings, listener, options)
        from uvicorn.config import STARTUP_FAILURE

        folder = tempfile.mkdtemp(prefix="rag-serving-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            # a large index without `vocab.hashes.npy` has its vocabulary parsed, which holds the interpreter for longer than the 5 s after
            # which a worker counts as hung
            config = uvicorn.Config(
                AppFactory(settings, index_ids),
                factory=True,
                workers=settings.workers,
                timeout_worker_healthcheck=120,
                **options,
            )
            supervisor = _supervisor(settings)(config, sockets=[listener])
            supervisor.run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        failed = (STARTUP_FAILURE, LEFT_BEHIND, -signal.SIGKILL)
        return int(any(worker.exitcode in failed for worker in supervisor.processes))


def _checked(settings: Settings) -> dict[str, str]:
    """Return the ids of the indexes that the settings name, by name.

    Raises:
        IndexingError: one is no index, or a file of it is missing or is not of the size that the manifest says.
    """
    if not settings.index:
        return {}
    from rag_serving.indexing.manifest import check, read_manifest

    found = {}
    for name, directory in settings.index.items():
        manifest = read_manifest(directory)
        check(directory, manifest, "never")
        found[name] = str(manifest["index_id"])
    return found


def _supervisor(settings: Settings) -> Any:
    from prometheus_client import multiprocess
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors.multiprocess import Multiprocess, Process

    terminal = Terminal()

    class Supervisor(Multiprocess):
        def keep_subprocess_alive(self) -> None:
            """As uvicorn's, but a worker that cannot start, because it finds another index than the others serve, does not end these."""
            limit_s = self.config.timeout_worker_healthcheck
            # With the workers' end of each pipe open here too, a worker that dies while it is asked whether it lives would be waited for
            # as long as one that hangs; closed, the pipe ends with the worker.
            for worker in self.processes:
                worker.child_conn.close()
            for worker in list(self.processes):
                if self.should_exit.is_set() or worker.is_alive(limit_s):
                    continue
                worker.kill()
                worker.join()
                multiprocess.mark_process_dead(worker.pid)
                others = [other for other in self.processes if other is not worker]
                if worker.exitcode != STARTUP_FAILURE:
                    log.error("worker %s died; another one starts", worker.pid)
                    self.processes[self.processes.index(worker)] = self._started()
                elif any(other.is_ready(limit_s) for other in others):
                    log.error("worker %s could not start; %d go on without it, until SIGHUP", worker.pid, len(others))
                    self.processes = others
                else:
                    self.should_exit.set()

        def _started(self) -> Process:
            worker = Process(self.config, self.sockets)
            worker.start()
            return worker

        def join_all(self) -> None:
            """Wait for the workers, which end by themselves; one that cannot even do that is killed."""
            until = time.monotonic() + 2 * settings.drain_s + 4 * GRACE_S
            for worker in self.processes:
                worker.process.join(max(0.0, until - time.monotonic()))
                if worker.exitcode is None:
                    log.error("worker %s hangs and does not end; it is killed", worker.pid)
                    worker.kill()
                    worker.process.join(GRACE_S)

        def handle_hup(self) -> None:
            """Let every worker load the index beside the one that it serves; bring back those that could not start."""
            if terminal.closed():
                self.should_exit.set()
                return
            factory: Any = self.config.app
            try:
                factory.index_ids = _checked(settings)
            except ServingError as error:
                log.error("nothing is loaded again: %s", error)
                return
            for worker in self.processes:
                if worker.exitcode is None and worker.pid is not None:
                    os.kill(worker.pid, signal.SIGHUP)
            self.processes += [self._started() for _ in range(self.processes_num - len(self.processes))]

    return Supervisor


def _serve_here(settings: Settings, listener: socket.socket, options: dict[str, Any]) -> int:
    import uvicorn

    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = True
        server.should_exit = True

    ending = Ending(settings.drain_s)
    server = uvicorn.Server(uvicorn.Config(_reloadable(settings, ending, on_failure=give_up), **options))
    try:
        server.run(sockets=[listener])
    finally:
        ending.over()
    return int(failed)
