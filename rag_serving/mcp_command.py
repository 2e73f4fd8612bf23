"""The command `rag-serving mcp`: its flags, and what they must not be together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rag_serving import MissingExtraError, ServingError
from rag_serving.help import example
from rag_serving.naming import address_of

TOLD = "give a running service's search to agents that speak MCP (Model Context Protocol)"


def add_mcp(commands: Any, url: str) -> argparse.ArgumentParser:
    """Add the command; `url` is the default."""
    mcp = commands.add_parser(
        "mcp",
        help=TOLD,
        description=f"{TOLD}: the tools search and open.",
        **example("rag-serving mcp --url http://127.0.0.1:8000"),
    )
    mcp.add_argument("--url", "--retrieval-url", default=url, help=f"the running service (default {url})")
    mcp.add_argument("--index", metavar="NAME", help="one of the service's indexes (default: its default index)")
    mcp.add_argument(
        "--transport",
        choices=("stdio", "http"),
        default="stdio",
        help="stdio: started by the agent's program (default); http: /mcp",
    )
    mcp.add_argument("--host", default="127.0.0.1", help="http: address to listen on (default 127.0.0.1)")
    mcp.add_argument("--port", type=int, default=8001, help="http: port to listen on; 0: any free one (default 8001)")
    mcp.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="http: a name that clients reach it by, beside --host and localhost, without port; can be repeated",
    )
    mcp.add_argument(
        "--tokens-file", type=Path, help="http: file of accepted bearer tokens, one per line; or RAG_SERVING_TOKENS"
    )
    return mcp


def run_mcp(options: argparse.Namespace) -> int:
    """Serve until the input ends, or a signal; return the exit code.

    Raises:
        ServingError: flags that cannot be, or a port that is taken.
        MissingExtraError: a package is not installed.
    """
    try:
        from rag_serving.client import Client
        from rag_serving.mcp_server import LOOPBACK, serve_http, serve_stdio
        from rag_serving.settings import load_settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "mcp", "mcp") from error
    service = Client(address_of(options.url, options.index), options.token)
    if options.transport == "stdio":
        serve_stdio(service)
        return 0
    settings, _ = load_settings({"tokens_file": options.tokens_file} if options.tokens_file else {})
    if options.token and not settings.tokens and options.host not in LOOPBACK:
        raise ServingError(
            f"whoever reaches {options.host}:{options.port} could search with your token for {options.url}; "
            "ask for tokens (--tokens-file FILE or RAG_SERVING_TOKENS), or listen on 127.0.0.1 only"
        )
    serve_http(service, settings, options.host, options.port, options.allow_host)
    return 0
