"""The base class of all methods. To add a method, subclass `Method` in a new file here and name its dotted path in a recipe."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from research_rl.errors import ConfigError, DataError, nearest
from research_rl.tools.base import Tool
from research_rl.types import (
    Action,
    Answer,
    Invalid,
    Message,
    Passage,
    PolicyPrompt,
    Reward,
    Search,
    StopReason,
    ToolCalls,
    Trajectory,
    Turn,
)

Prompt = str | Sequence[str] | None  # the option `prompt`: a template's text, or pieces of it that are joined
_TEMPLATES = Path(__file__).parent / "templates"
_UNWRITTEN = (
    "the method {} cannot write demonstrations: define write_search, write_answer and, with tools, write_call in its class"
)


class TemplateCodec(Protocol):
    """What a method may read from a tokenizer: its chat template, the template's frame around results of tools, its control tokens."""

    special_tokens: tuple[str, ...]

    @property
    def template(self) -> str:
        """The text of the chat template; empty if there is none."""
        ...

    def tool_results(self, contents: Sequence[str]) -> str:
        """Return the template's frame around the results of tools, up to where the assistant writes again."""
        ...


class Method(ABC):
    """Prompt, protocol and reward of one method. Stateless: one instance serves all rollouts of a process."""

    name: ClassVar[str]
    stop: tuple[str, ...]  # generation stops after any of these; the stop string stays in the text
    tags: tuple[str, ...]  # strings with a meaning in the protocol; neutralised inside passages (each must be `breakable`)
    observed: ClassVar[re.Pattern[str]]  # finds the observations in a response that other software recorded
    tools: Mapping[str, Tool] = MappingProxyType({})  # by the name under which the policy calls them; see `tool_calls`
    prefill: str = ""  # the opening of every response: a part of the prompt, never sampled

    @abstractmethod
    def prompt(self, question: str) -> PolicyPrompt:
        """Return plain text for a base model, or messages (with tools, if there are any) for the chat template."""

    @abstractmethod
    def parse(self, text: str) -> Action:
        """Read the action out of one turn's text (what the policy wrote since the last observation)."""

    @abstractmethod
    def render(self, passages: list[list[Passage]]) -> str:
        """Return the observation for the results of one turn's queries, tags included; for a method with `tools`, the content of
        one call's result. The passages have been neutralised before."""

    @abstractmethod
    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Score a finished trajectory.

        `judged`: a judge's verdict on the final answer, 1.0 or 0.0 (see research_rl.judge). It replaces the method's own
        metric of the answer, and nothing else. None: there is no judge, or it gave no verdict.
        """

    @abstractmethod
    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether the whole trajectory keeps the method's format."""

    def answer(self, trajectory: Trajectory) -> str | None:
        """Return the final answer, or None if there is none."""
        last = trajectory.turns[-1].action if trajectory.turns else None
        return last.text if isinstance(last, Answer) else None

    def hint(self, action: Invalid) -> str:
        """Return the text that the policy is shown after an invalid action; if it is empty, the rollout ends there."""
        return ""

    def write_search(self, thought: str, query: str) -> str:
        """Return a turn that ends in a search, as a policy that knows the protocol writes it; used for demonstrations.

        `thought` is copied as it is, including a space before its first word.

        Raises:
            ConfigError: the method does not define it.
        """
        raise ConfigError(_UNWRITTEN.format(self.name))

    def write_answer(self, thought: str, answer: str) -> str:
        """Return the last turn, with the final answer; see `write_search`."""
        raise ConfigError(_UNWRITTEN.format(self.name))

    def write_call(self, thought: str, name: str, arguments: Mapping[str, Any]) -> str:
        """Return a turn that ends in the call of a tool; see `write_search`."""
        raise ConfigError(_UNWRITTEN.format(self.name))

    def check_template(self, codec: TemplateCodec) -> None:  # noqa: B027 - not abstract, because most methods need no check
        """Check that the method goes with a tokenizer's chat template.

        Raises:
            ConfigError: it does not; the message says what to change.
        """

    def regroup(self, trajectories: Sequence[Trajectory], rewards: Sequence[Reward]) -> list[Reward]:
        """Return the rewards of all rollouts of one question, when they depend on one another; in order."""
        return list(rewards)

    def read_messages(self, messages: Sequence[Any]) -> Trajectory:
        """Return a recorded conversation in OpenAI's format as a trajectory, without token ids; see `research_rl.recordings`.

        Raises:
            DataError: it is malformed, or the method calls no tools.
        """
        raise DataError(f"the method {self.name} reads a response as one text; lists of messages are read by tool_calls")

    def read(self, text: str, question: str = "") -> Trajectory:
        """Return a recorded response as a trajectory, without token ids.

        What `observed` matches is taken as observation, the rest as written by the policy, which is assumed to have ended with EOS.
        """
        turns: list[Turn] = []
        start = 0
        for match in self.observed.finditer(text):
            policy = text[start : match.start()]
            turns.append(Turn(policy, self.parse(policy), match.group(0)))
            start = match.end()
        if rest := text[start:]:
            turns.append(Turn(rest, self.parse(rest)))
        return recorded(question, turns)


def recorded(question: str, turns: Sequence[Turn]) -> Trajectory:
    """Return the trajectory of turns that other software recorded: without token ids, and ended by EOS."""
    last = turns[-1].action if turns else Invalid("empty")
    stop = (
        StopReason.ANSWERED
        if isinstance(last, Answer)
        else StopReason.MAX_SEARCHES
        if isinstance(last, Search | ToolCalls)
        else StopReason.NO_ACTION
    )
    return Trajectory(question, [], [], [], [], tuple(turns), stop, ended_with_eos=True)


def known(method: str, option: str, value: object, valid: Iterable[object]) -> None:
    """Check one option of a method.

    Raises:
        ConfigError: the value is not one of `valid`.
    """
    valid = list(valid)
    if value not in valid:
        raise ConfigError(f"{method}: {option}={value!r} is unknown; valid: {', '.join(map(str, valid))}")


def breakable(word: str) -> bool:
    """Return whether a string disappears from a text if a space is inserted after its first character.

    It does not if it has a single character, if it begins with white space (a control token of white space only is harmless), or if
    only spaces follow its first character: "# " with one more space still contains "# ".
    """
    return len(word) > 1 and not word[0].isspace() and bool(word[1:].strip(" "))


def neutralize(text: str, forbidden: Iterable[str]) -> str:
    """Return `text` without any `breakable` string of `forbidden`: a space is inserted after its first character.

    A passage may contain `</result><answer>` or `<|im_end|>`. The policy may read it, but it must not act as a tag or a control token.
    """
    # The loop ends: every inserted space widens the gap between two characters, and no word spans a gap wider than its own.
    groups = _by_beginning(tuple(forbidden))
    while found := [word for beginning, words in groups if beginning in text for word in words if word in text]:
        for word in found:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


@lru_cache(maxsize=16)
def _by_beginning(forbidden: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Return the breakable words by their first two characters: of thousands of control tokens, most begin with the same two."""
    words = sorted(filter(breakable, set(forbidden)))
    return [(beginning, list(group)) for beginning, group in groupby(words, lambda word: word[:2])]


def load_template(
    default: str, prompt: Prompt = None, prompt_file: str | None = None, placeholder: str | None = "question"
) -> Template:
    """Return a method's prompt template: the text `prompt` (or a list of its pieces); else `prompt_file`; else our template `default`.

    Raises:
        ConfigError: text and file are given, there is no such file, or the text lacks the placeholder (`$question`).
    """
    if prompt is not None and prompt_file:
        raise ConfigError(f"give the text of a prompt or its file, not both; got the file {prompt_file!r} and a text")
    text = _read_template(prompt_file or default) if prompt is None else prompt if isinstance(prompt, str) else "".join(prompt)
    template = Template(text.rstrip("\n"))
    if placeholder and placeholder not in template.get_identifiers():
        where = f"the prompt {text[:80]!r}" if prompt is not None else f"the prompt template {prompt_file or default}"
        raise ConfigError(f"{where} must contain ${placeholder}")
    return template


def text_or_system(form: str, wording: Template, question: str) -> str | list[Message]:
    """Return the prompt of a method with two forms: `base`, the wording with the question in it; else the wording as system message."""
    if form == "base":
        return wording.substitute(question=question)
    return [{"role": "system", "content": wording.template}, {"role": "user", "content": question}]


def with_prompt_texts(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with each prompt file replaced by its text (`prompt_file` by `prompt`), for use on other machines.

    Raises:
        ConfigError: see `load_method` and `load_template`.
    """
    valid = inspect.signature(_kind(method)).parameters
    found: dict[str, Any] = {}
    for name, value in options.items():
        text = name.removesuffix("_file")
        if name.endswith("prompt_file") and value and text in valid:
            found[text] = prompt_pieces(value)
        else:
            found[name] = value
    return found


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


def load_method(path: str, **options: Any) -> Method:
    """Make a method from its name (a file of this package: ``r1_searcher``) or its dotted path (``my_package.MyMethod``).

    Raises:
        ConfigError: the name or path leads to no `Method`, an option is unknown or has a wrong value, or the method is incomplete
            (see `check_method`).
    """
    kind = _kind(path)
    if missing := sorted(kind.__abstractmethods__):
        raise ConfigError(f"the method {path} does not define: {', '.join(missing)}")
    try:
        method = kind(**options)
    except TypeError as error:
        valid = list(inspect.signature(kind).parameters)
        wrong = next((name for name in options if name not in valid), "")
        raise ConfigError(f"{path} does not take these method options: {options} ({error}). {nearest(wrong, valid)}") from error
    return check_method(method)


def method_defaults(path: str) -> dict[str, Any]:
    """Return the values that a method's options have if they are not given, as far as JSON can hold them.

    Raises:
        ConfigError: the name or path leads to no `Method`.
    """
    found = {}
    for name, option in inspect.signature(_kind(path)).parameters.items():
        if option.default is not option.empty:
            with contextlib.suppress(TypeError, ValueError):
                found[name] = json.loads(json.dumps(option.default))
    return found


def check_method(method: Method) -> Method:
    """Check that a method has the attributes that the rollout, the manifest and `read` rely on, and return it.

    Raises:
        ConfigError: an attribute is missing or of another type, or a tag is not `breakable`.
    """
    needed: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "name": ("a text", lambda value: isinstance(value, str) and bool(value)),
        "stop": ("a tuple of texts", _texts),
        "tags": ("a tuple of texts", _texts),
        "observed": ("a compiled regular expression", lambda value: isinstance(value, re.Pattern)),
    }
    name = f"{type(method).__module__}.{type(method).__qualname__}"
    for attribute, (what, right) in needed.items():
        if not right(value := getattr(method, attribute, None)):
            raise ConfigError(f"the method {name} needs the attribute `{attribute}`, {what}; got {value!r}")
    if stuck := [tag for tag in method.tags if not breakable(tag)]:
        raise ConfigError(
            f"the method {name} has tags that a space after the first character does not break, so that a passage could contain them: "
            f"{stuck}. A tag needs two characters or more; the first must not be white space, and the others not spaces alone"
        )
    return method


def _texts(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(text, str) and text for text in value)


def method_names() -> list[str]:
    """Return the names of the methods of this package: its files."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "base"))


def _kind(path: str) -> type[Method]:
    return _named(path) if "." not in path else _at(path)


def _named(name: str) -> type[Method]:
    if name not in method_names():
        raise ConfigError(
            f"no method is called {name!r}; valid: {', '.join(method_names())}, or the dotted path of a Method class"
        )
    module = importlib.import_module(f"research_rl.methods.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
    )


def _at(path: str) -> type[Method]:
    module, _, attribute = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"research_rl.method={path!r} cannot be imported ({error}); give the dotted path of a Method class"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(f"research_rl.method={path!r} is not a subclass of research_rl.methods.base.Method")
    return kind
