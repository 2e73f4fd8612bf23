"""The base class of all methods. To add a method, subclass `Method` in a new file here and name its dotted path in a recipe."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from research_rl.errors import ConfigError, DataError
from research_rl.tools.base import Tool
from research_rl.types import (
    Action,
    Answer,
    Invalid,
    Passage,
    PolicyPrompt,
    Reward,
    Search,
    StopReason,
    ToolCalls,
    Trajectory,
    Turn,
)

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
