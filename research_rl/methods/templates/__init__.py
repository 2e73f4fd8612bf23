"""The methods' prompt templates: the files beside this one, or a user's file or text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from research_rl.errors import ConfigError
from research_rl.types import Message

Prompt = str | Sequence[str] | None  # the option `prompt`: a template's text, or pieces of it that are joined
_TEMPLATES = Path(__file__).parent


def load_template(
    default: str, prompt: Prompt = None, prompt_file: str | None = None, placeholder: str | None = "question"
) -> Template:
    """Return a method's prompt template: the text `prompt` (or a list of its pieces); else `prompt_file`; else our template `default`.

    One line break at the end is not a part of the prompt, as it ends the last line of a file.

    Raises:
        ConfigError: text and file are given, there is no such file, or the text lacks the placeholder (`$question`).
    """
    if prompt is not None and prompt_file:
        raise ConfigError(f"give the text of a prompt or its file, not both; got the file {prompt_file!r} and a text")
    text = _read_template(prompt_file or default) if prompt is None else prompt if isinstance(prompt, str) else "".join(prompt)
    template = Template(text.removesuffix("\n"))
    if placeholder and placeholder not in template.get_identifiers():
        where = f"the prompt {text[:80]!r}" if prompt is not None else f"the prompt template {prompt_file or default}"
        raise ConfigError(f"{where} must contain ${placeholder}")
    return template


def text_or_system(form: str, wording: Template, question: str) -> str | list[Message]:
    """Return the prompt of a method with two forms: `base`, the wording with the question in it; else the wording as system message."""
    if form == "base":
        return wording.substitute(question=question)
    return [{"role": "system", "content": wording.template}, {"role": "user", "content": question}]


def prompt_pieces(name_or_file: str) -> str | list[str]:
    """Return a template's text as a value for OmegaConf, cut between every `$` and `{`: OmegaConf would take `${question}` for an
    interpolation.

    Raises:
        ConfigError: there is no such file.
    """
    pieces = re.split(r"(?<=\$)(?=\{)", _read_template(name_or_file))
    return pieces[0] if len(pieces) == 1 else pieces


def _read_template(name_or_file: str) -> str:
    path = _TEMPLATES / f"{name_or_file}.txt"
    if not path.is_file():
        path = Path(name_or_file)
    if not path.is_file():
        ours = ", ".join(sorted(file.stem for file in _TEMPLATES.glob("*.txt")))
        raise ConfigError(
            f"no prompt template {name_or_file!r} (looked for in {path.absolute().parent}): give a file's path, or one of: {ours}"
        )
    return path.read_text(encoding="utf-8")
