"""The parser of all commands: its help ends with an example and names every default, and its errors say what to do.

Exit codes: 0: done; 1: failed, the reason is on standard error; 2: the command line cannot be understood; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import takewhile
from typing import Any, NoReturn

from research_rl.errors import nearest

EXAMPLE = "example:"


class Parser(argparse.ArgumentParser):
    """A parser whose help ends with an example command. Subparsers are of this class, too: `add_parser(name, help=…, example=…)`."""

    def __init__(self, *, example: str, **options: Any) -> None:
        """`example` may have several lines, each but the last ending in a backslash; `options` are those of `ArgumentParser`."""
        super().__init__(epilog=f"{EXAMPLE}\n  {example}", formatter_class=_Help, **options)
        self.register("action", "parsers", _Subcommands)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]  # argparse declares overloads
        """Parse as `ArgumentParser` does, but treat an unknown option as an error at once, and name the most similar valid option."""
        found, rest = super().parse_known_args(args, namespace)
        unknown = [word for word in takewhile(lambda word: word != "--", rest) if word.startswith("-")]
        if unknown and self._subparsers is None:
            self.error(f"no option is called {unknown[0]}. {nearest(unknown[0], self._option_string_actions)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to find help, and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}\nAll options, with an example: {self.prog} --help\n")


def show(text: str) -> None:
    """Print a command's result. A reader that has seen enough (`| head`) is no mistake."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends


def json_object(text: str) -> dict[str, Any]:
    """Return the value of an option that takes JSON.

    Raises:
        argparse.ArgumentTypeError: it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'expected a JSON object, for example \'{{"preset": "f1"}}\'; got {text!r}: {error}'
        ) from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object, for example \'{{"preset": "f1"}}\'; got {text!r}')
    return found


class _Subcommands(argparse._SubParsersAction):
    def add_parser(self, name: str, **options: Any) -> Any:
        return super().add_parser(name, description=options.pop("description", options.get("help")), **options)


class _Help(argparse.HelpFormatter):
    """Keeps an example's lines and a description's paragraphs, and adds the default to an option's help text that does not name it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLE):
            return text
        return "\n\n".join(super(_Help, self)._fill_text(part, width, indent) for part in text.replace("``", "`").split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        told = action.help or ""
        unsaid = default is None or default is False or default in ([], {}, "", argparse.SUPPRESS) or not action.option_strings
        if unsaid or action.required or action.nargs == 0 or "default" in told:
            return told
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{told} (default {shown.replace('%', '%%')})"
