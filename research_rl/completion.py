"""``research-rl completion SHELL``: the script by which a shell completes commands, options, their choices and file names.

The script is static (shtab makes it), so that completing a word does not start Python. It has the commands whose extras are installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from research_rl.cli import COMMANDS
from research_rl.command_line import Parser
from research_rl.errors import MissingExtraError, missing_extra

SHELLS = ("bash", "zsh")
WHOLE, SERVICE = "research-rl", "rag-serving"


def main(arguments: list[str] | None = None) -> int:
    """Print the script; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        print(script(options.shell, options.command))
    except MissingExtraError as error:
        print(f"research-rl completion: {error}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="research-rl completion", description=__doc__, example="research-rl completion bash")
    parser.add_argument("shell", choices=SHELLS, help="the shell that runs the script")
    parser.add_argument(
        "command", nargs="?", choices=(WHOLE, SERVICE), default=WHOLE, help=f"the command to complete (default {WHOLE})"
    )
    return parser


def script(shell: str, command: str = WHOLE) -> str:
    """Return the script by which `shell` completes `command`.

    Raises:
        MissingExtraError: shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise missing_extra("shtab", "completion") from error
    parser = _all_commands() if command == WHOLE else importlib.import_module("rag_serving.cli").make_parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads this attribute
    return shtab.complete(parser, shell)


def _all_commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=WHOLE)
    commands = parser.add_subparsers()
    for name, (module, told) in COMMANDS.items():
        try:
            own = importlib.import_module(module).make_parser()
        except ImportError:  # its extra is not installed
            continue
        commands.add_parser(name, help=told, parents=[own], conflict_handler="resolve")  # both have --help
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


if __name__ == "__main__":
    sys.exit(main())
