"""``research-rl view RUN``: show the trajectories, curves and alarms of a run on a local web page, also while it is being trained."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from pathlib import Path

from research_rl.command_line import Parser
from research_rl.errors import ConfigError, missing_extra
from research_rl.web.page import own_hosts
from research_rl.web.viewer_cache import Cache, cache_directory


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        import uvicorn

        from research_rl.web.viewer_app import create_viewer
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "uvicorn", "view") from error
    try:
        caches = [Cache(run, options.cache) for run in options.runs]
    except ConfigError as error:
        print(f"research-rl view: {error}", file=sys.stderr)
        return 1
    try:
        listening = socket.create_server(
            (options.host, options.port), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        print(
            f"research-rl view: cannot listen on {options.host}:{options.port}: {error}; choose another --port or --host",
            file=sys.stderr,
        )
        return 1
    with listening:
        url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{listening.getsockname()[1]}"
        hosts = own_hosts(options.host)
        if hosts is None:
            print(
                f"research-rl view: {options.host} is not a loopback address: whoever can reach it can read everything in these runs",
                file=sys.stderr,
            )
        print(url, flush=True)  # printed last, so that whoever waits for it has read the warning
        if not options.no_browser and _has_display():
            webbrowser.open(url)
        app = create_viewer(caches, hosts)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listening])
        except KeyboardInterrupt:
            return 130
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="research-rl view", description=__doc__, example="research-rl view runs/quickstart --port 0")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="directory of a run or of verl's rollouts, or a .jsonl of an evaluation or of another program",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; whoever can reach it can read everything")
    parser.add_argument("--port", type=int, default=8770, help="port to listen on; 0: any free one")
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache_directory(),
        help="directory for the caches of runs (default: %(default)s)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
