"""Where the service's log lines go, and how: all with the id of their request, those of requests gathered."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from contextvars import ContextVar

from rag_serving.settings import Settings

access = logging.getLogger("rag_serving.access")  # a line for every request
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# how uvicorn's lines begin about what a stranger has sent
_STRANGERS = ("Invalid HTTP request received.", "Unsupported upgrade request.", "No supported WebSocket library detected.")


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _Gathering(logging.StreamHandler):
    """Writes the lines of requests together, `WRITTEN_S` after the first; any other line at once, with those before it.

    To write a line gives the interpreter to another thread, and waits until it comes back: that took a third of a small search's time.
    """

    WRITTEN_S = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lines.clear()
        threading.Thread(target=self._write_now_and_then, daemon=True, name="log").start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
            if record.name != access.name or record.levelno > logging.INFO:
                self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._lines[:] = "".join(self._lines), []
            if lines:
                self.stream.write(lines)
            if self.stream and not self.stream.closed:
                self.stream.flush()
        finally:
            self.release()

    def _write_now_and_then(self) -> None:
        while True:
            time.sleep(self.WRITTEN_S)
            if self._lines:
                with contextlib.suppress(Exception):  # nobody reads it any more
                    self.flush()


def flush_logs() -> None:
    """Write what has been logged and not been written yet."""
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(Exception):
            handler.flush()


def configure_logging(settings: Settings) -> None:
    """Write to standard error: text lines, or one JSON object per line (time, level, logger, message, request id, fields)."""
    handler = _Gathering()
    handler.addFilter(_WithRequestId())
    if settings.log_format == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s",
                rename_fields={"asctime": "time", "levelname": "level"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # a line for every request: what no line shows is not looked for (Python's documentation of logging, Optimization)
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("rag_serving").setLevel(settings.log_level)
    # no line for each odd request: any stranger could fill the disk with them
    logging.getLogger("uvicorn.error").addFilter(lambda record: not str(record.msg).startswith(_STRANGERS))
