"""The commands' own parsers, and a page of them: `python -m docs.tools.commands` writes docs/reference/cli.md."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from unittest import mock

from research_rl.files import write_text

PAGE = Path(__file__).parents[1] / "reference" / "cli.md"
COMMANDS = {  # as it is typed: module with a `make_parser()`
    "research-rl train": "research_rl.training.train",
    "research-rl doctor": "research_rl.verl_plugin.doctor.command",
    "research-rl view": "research_rl.web.viewer",
    "research-rl chat": "research_rl.web.chat",
    "research-rl export": "research_rl.release",
    "research-rl completion": "research_rl.completion",
    "rag-serving": "rag_serving.cli",
    "python -m data_preprocess": "data_preprocess.__main__",
    "python -m evaluation": "evaluation.__main__",
    "python -m quickstart": "quickstart.__main__",
    "python -m quickstart.rehearsal": "quickstart.rehearsal",
    "python -m experiment": "experiment.__main__",
}
ALSO = {  # other names of the same
    "python -m research_rl.train": "research-rl train",
    "research-rl evaluate": "python -m evaluation",
    "research-rl data": "python -m data_preprocess",
    "research-rl serve": "rag-serving",
}
SHARED = {  # options that mean the same in all commands
    "--chat-template-kwargs": "what the chat template gets besides the messages, as JSON",
    "--concurrency": "rollouts, questions or requests under way at a time",
    "--fresh": "begin again: what an earlier run left is deleted",
    "--host": "address to listen on",
    "--json": "print JSON, for scripts",
    "--manifest": "directory of the model's `research_rl.json`, if it is not beside the tokenizer",
    "--max-observation-tokens": "most tokens of a search's result",
    "--max-searches": "most searches of a rollout",
    "--max-tokens": "most tokens of one generation",
    "--max-turn-tokens": "most sampled tokens of a turn",
    "--method": "name of a method, or the dotted path of a class",
    "--method-options": "the method's options, as JSON",
    "--model": "the model: its name on the server, or a directory or hub id where there is none",
    "--model-url": "base URL of an OpenAI-compatible server, ending in /v1",
    "--no-bos": "(and `--bos`) whether prompts begin with the BOS",
    "--out": "file or directory to write",
    "--port": "port to listen on",
    "--questions": "file of questions",
    "--recipe": "a recipe",
    "--response-tokens": "most tokens of a response, observations included",
    "--retrieval-url": "the retrieval service (also `--url`, in `rag-serving`)",
    "--rows": "most rows in all",
    "--run-dir": "directory of the run",
    "--samples": "rollouts of each question",
    "--seed": "seed of every choice that is drawn",
    "--steps": "optimiser steps",
    "--temperature": "sampling temperature; 0: always the most likely token",
    "--tokenizer": "directory or hub id of the tokenizer",
    "--top-k": "passages of a search",
    "--workers": "processes",
}
ENVIRONMENT = ("RETRIEVAL_TOKEN", "RAG_SERVING_MILVUS_TOKEN", "XDG_CACHE_HOME")  # defaults of options come from these
HEAD = """# Commands

Every option of every command, as the commands themselves know them. Written by `python -m docs.tools.commands`; a test compares.

`research-rl COMMAND` has all commands under one name: `train`, `doctor`, `view`, `chat`, `export`, and `evaluate`
(`python -m evaluation`), `data` (`python -m data_preprocess`), `serve` (`rag-serving`) and `completion`.
`python -m research_rl.train` is `research-rl train`. `make help` lists the targets of the Makefile. `--help` tells what stands here.

## Exit codes

| code | |
|---|---|
| 0 | done; the doctor found no error |
| 1 | failed, with the reason on standard error; the doctor found an error |
| 2 | the command line cannot be understood |
| 3 | `train`: a rule of [health](../health.md#rules) has ended the run |
| 130 | interrupted; where that is possible, the same command goes on |

`train` ends with the code of verl's job if that fails. Colour goes to a terminal only, and to none where `NO_COLOR` is set.

## Tab completion

In bash (with the package bash-completion), for both commands:

```bash
pip install 'research-rl[completion]'
mkdir -p ~/.local/share/bash-completion/completions
research-rl completion bash > ~/.local/share/bash-completion/completions/research-rl
research-rl completion bash rag-serving > ~/.local/share/bash-completion/completions/rag-serving
```

In zsh, into a directory of `$fpath`:

```bash
research-rl completion zsh > ~/.zfunc/_research-rl
research-rl completion zsh rag-serving > ~/.zfunc/_rag-serving
```

A script knows the options of the version that wrote it: write it again after an update.
"""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of one of `COMMANDS`, complete with its subcommands."""
    with mock.patch.dict("os.environ", dict.fromkeys(ENVIRONMENT, "")):
        return importlib.import_module(COMMANDS[command]).make_parser()


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands, by name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(groups[0].choices) if groups else {}


def example_of(parser: argparse.ArgumentParser) -> str:
    """Return the example at the end of a parser's help; empty if there is none."""
    return (parser.epilog or "").removeprefix("example:").strip()


def page() -> str:
    """Return the page."""
    lines = [HEAD, *_shared(), *(line for command in COMMANDS for line in _command(command))]
    return "\n".join(lines).rstrip() + "\n"


def shared() -> dict[str, list[str]]:
    """Return the options that several commands have, with these commands."""
    found: dict[str, dict[str, None]] = {}
    for command in COMMANDS:
        parser = parser_of(command)
        for action in chain.from_iterable(each._actions for each in (parser, *subparsers(parser).values())):
            if action.option_strings and action.dest != "help":
                found.setdefault(action.option_strings[-1], {})[command] = None
    return {option: list(commands) for option, commands in sorted(found.items()) if len(commands) > 1}


def _shared() -> Iterator[str]:
    found = shared()
    others = ", ".join(f"`{option}`" for option in found if option not in SHARED)
    yield "## Options of several commands\n"
    yield f"These mean the same wherever they are; {others} depend on the command. Each command tells its own defaults.\n"
    yield "| option | meaning | commands |\n|---|---|---|"
    for option in (option for option in found if option in SHARED):
        yield f"| `{option}` | {SHARED[option]} | {', '.join(f'`{_short(command)}`' for command in found[option])} |"
    yield ""


def _short(command: str) -> str:
    return command.removeprefix("python -m ").removeprefix("research-rl ")


def _command(command: str) -> Iterator[str]:
    parser = parser_of(command)
    yield f"## {command}\n"
    yield _plain(parser.description or "") + "\n"
    children = subparsers(parser)
    if not children:
        yield from _options(parser)
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help for choice in groups[0]._choices_actions} if groups else {}
    for name, child in children.items():
        yield f"### {command.removeprefix('python -m ')} {name}\n"
        if told := helps.get(name):
            yield f"{_plain(told)}\n"
        yield from _options(child)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"```bash\n{example_of(parser)}\n```\n"
    for action in parser._actions:
        if action.dest != "help":
            yield _name(action)
            yield f":   {_help(action, parser)}\n"


def _name(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or ("" if action.choices else action.dest.upper())
    name = ", ".join(action.option_strings) if action.option_strings else str(action.metavar or action.dest)
    shown = f"{name} {value}".strip() if action.option_strings else name
    return f"`{shown}`" + (" **required**" if action.required and action.option_strings else "")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    told = parser._get_formatter()._expand_help(action) if action.help else ""
    choices = "one of " + ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else ""
    return "; ".join(part for part in (_anywhere(_plain(told)), choices) if part)


def _anywhere(text: str) -> str:
    """Return a text without the paths of this machine."""
    return text.replace(f"{Path(__file__).parents[2]}/", "").replace(f"{Path.home()}/", "~/")


def _plain(text: str) -> str:
    """Return a docstring or help text as one paragraph of Markdown."""
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    return re.sub(r"(?<!`)<(\w+)>", r"`<\1>`", text)


if __name__ == "__main__":
    write_text(PAGE, page())
