"""``research-rl COMMAND …``: every command of the project under one name. A command's module is imported only when the command is run."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import NoReturn

COMMANDS = {  # name: (module with a `main(arguments)`, what it does)
    "chat": ("research_rl.web.chat", "ask a served model in the terminal, and watch it search"),
    "evaluate": ("evaluation.__main__", "run, score, judge, rescore, recall, baseline, report"),
    "data": ("data_preprocess.__main__", "make data sets, corpora, selections by difficulty, demonstrations"),
    "doctor": ("research_rl.verl_plugin.doctor.command", "check the environment, or a recipe before it is run"),
    "train": ("research_rl.train", "train a recipe, with all its stages"),
    "export": ("research_rl.release", "export a checkpoint as a folder to share: model, protocol, model card"),
    "view": ("research_rl.web.viewer", "show a run's trajectories, curves and alarms on a local web page"),
    "serve": ("rag_serving.cli", "rag-serving: index, serve, search, estimate, verify, bench, mcp"),
    "completion": ("research_rl.completion", "print the script with which bash or zsh completes these commands"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] not in COMMANDS:
        lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
        asked = bool(given) and given[0] not in ("-h", "--help")
        told = f"research-rl: no command is called {given[0]!r}\n" if asked else ""
        hint = "research-rl COMMAND --help shows its options, with an example"
        print(
            "\n".join([f"{told}usage: research-rl COMMAND …", *lines, hint]),
            file=sys.stderr if asked or not given else sys.stdout,
        )
        return 2 if asked or not given else 0
    module = COMMANDS[given[0]][0]
    try:
        return importlib.import_module(module).main(given[1:])
    except ImportError as error:
        print(f"research-rl {given[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def command() -> NoReturn:
    """Run the command of the command line, and end the process: the console script."""
    code = main()
    if sys.argv[1:2] == ["doctor"]:  # it leaves nothing behind, and Python needs 1.7 s to take verl's modules apart
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
