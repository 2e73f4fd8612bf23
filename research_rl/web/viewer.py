"""``research-rl view RUN``: show the trajectories, curves and alarms of a run on a local web page, also while it is being trained."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from research_rl.command_line import Parser
from research_rl.errors import ConfigError, missing_extra
from research_rl.web.serving import serve_page
from research_rl.web.viewer_cache import Cache, cache_directory


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        from research_rl.web.viewer_app import create_viewer
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "view") from error
    try:
        caches = [Cache(run, options.cache) for run in options.runs]
        serve_page(
            lambda hosts: create_viewer(caches, hosts),
            options.host,
            options.port,
            exposed="read everything in these runs",
            extra="view",
            on_address=None if options.no_browser or not _has_display() else webbrowser.open,
        )
    except ConfigError as error:
        print(f"research-rl view: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="research-rl view", description=__doc__, example="research-rl view runs/quickstart --port 0")
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="directory of a run or of verl's rollouts, or a .jsonl of an evaluation or of another program",
    )
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
