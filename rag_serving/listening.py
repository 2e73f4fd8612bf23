"""What every server of ours listens with: a port, and uvicorn's options with the limits of the settings."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from rag_serving import ServingError
from rag_serving.protocol import limited_protocol
from rag_serving.settings import Settings


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port.

    Raises:
        ServingError: the port is taken, or the address is not this machine's.
    """
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


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return the options of `uvicorn.Config`; raises the limit of open files as far as this user may."""
    return {
        "log_config": None,
        "access_log": False,
        "http": limited_protocol(settings, _allow_descriptors()),
        "ws": "none",
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": max(1, round(settings.drain_s)),
        "server_header": False,
        "backlog": 4096,
    }


def _allow_descriptors() -> int:
    """Raise the limit of open files as far as this user may; return it. Workers inherit it."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says that there is no limit, and refuses to be taken at its word
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        allowed = most
    return sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
