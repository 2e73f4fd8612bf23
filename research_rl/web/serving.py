"""Serve a web page on this machine, as the viewer and the chat do."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

from research_rl.errors import ConfigError, missing_extra
from research_rl.web.page import own_hosts


def serve_page(
    create: Callable[[list[str] | None], Any],
    host: str,
    port: int,
    *,
    exposed: str,
    extra: str,
    on_address: Callable[[str], Any] | None = None,
) -> None:
    """Print the page's address and serve it until the process is interrupted.

    Args:
        create: makes the ASGI application from the names by which the page may be asked for (None: any name).
        host: address to listen on.
        port: port to listen on; 0: any free one.
        exposed: what others can do if `host` is not a loopback address, as the end of a sentence; printed to stderr then.
        extra: the extra of research-rl that brings uvicorn.
        on_address: called with the address when the page can be asked for.

    Raises:
        ConfigError: the address cannot be listened on.
        MissingExtraError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise missing_extra("uvicorn", extra) from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    with listening:
        hosts = own_hosts(host)
        if hosts is None:
            print(f"{host} is not a loopback address: whoever can reach it can {exposed}", file=sys.stderr)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        print(url, flush=True)  # printed last, so that whoever waits for it has read the warning
        if on_address:
            on_address(url)
        uvicorn.Server(uvicorn.Config(create(hosts), log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listening])
