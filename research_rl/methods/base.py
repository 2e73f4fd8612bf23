"""What a method is. To add one: subclass `Method` in a new file here and name its dotted path in a recipe."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any, ClassVar

from research_rl.errors import ConfigError
from research_rl.types import Action, Answer, Message, Passage, Reward, Trajectory

_TEMPLATES = Path(__file__).parent / "templates"


class Method(ABC):
    """Prompt, protocol and reward of one method. Stateless: one instance serves all rollouts of a process."""

    name: ClassVar[str]
    stop: ClassVar[tuple[str, ...]]  # generation stops after any of these; the stop string stays in the text
    tags: ClassVar[tuple[str, ...]]  # strings with a meaning in the protocol; neutralised inside passages

    @abstractmethod
    def prompt(self, question: str) -> str | list[Message]:
        """Return plain text for a base model, or messages for the chat template."""

    @abstractmethod
    def parse(self, text: str) -> Action:
        """Read the action out of one turn's text (what the policy wrote since the last observation)."""

    @abstractmethod
    def render(self, passages: list[list[Passage]]) -> str:
        """Return the observation for the results of one turn's queries, tags included. The passages are neutralised already."""

    @abstractmethod
    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str]) -> Reward:
        """Score a finished trajectory."""

    @abstractmethod
    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether the whole trajectory keeps the method's format."""

    def answer(self, trajectory: Trajectory) -> str | None:
        """Return the final answer, or None if there is none."""
        last = trajectory.turns[-1].action if trajectory.turns else None
        return last.text if isinstance(last, Answer) else None


def neutralize(text: str, forbidden: Iterable[str]) -> str:
    """Return `text` in which no string of `forbidden` occurs: a space is put after its first character.

    A passage may hold `</result><answer>` or `<|im_end|>`; the policy should read it, and nobody should obey it.
    """
    # a token of white space only is harmless, and a space put after a space would change nothing
    words = [word for word in forbidden if len(word) > 1 and not word[0].isspace()]
    while found := [word for word in words if word in text]:
        for word in found:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


def load_template(name_or_file: str, placeholder: str | None = "question") -> Template:
    """Return a prompt template: a file of ours by name (`research_base`), or any file by path.

    Raises:
        ConfigError: there is no such template, or it lacks the placeholder (`$question`).
    """
    path = _TEMPLATES / f"{name_or_file}.txt"
    if not path.is_file():
        path = Path(name_or_file)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _TEMPLATES.glob("*.txt")))
        raise ConfigError(f"no prompt template {name_or_file!r}: give a file's path, or one of: {known}")
    template = Template(path.read_text(encoding="utf-8").rstrip("\n"))
    if placeholder and placeholder not in template.get_identifiers():
        raise ConfigError(f"the prompt template {path} must contain ${placeholder}")
    return template


def load_method(path: str, **options: Any) -> Method:
    """Make the method at a dotted path such as ``research_rl.methods.research.ReSearch``.

    Raises:
        ConfigError: the path leads to no `Method`, or an option is unknown or has a wrong value.
    """
    module, _, attribute = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"research_rl.method={path!r} cannot be imported ({error}); give the dotted path of a Method class"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(f"research_rl.method={path!r} is not a subclass of research_rl.methods.base.Method")
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"{path} does not take these research_rl.method_options: {options} ({error})") from error
