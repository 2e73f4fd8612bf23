"""The data types of rollouts, methods and rewards."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypedDict


class Message(TypedDict):
    """One chat message, as chat templates take it."""

    role: str
    content: str


class Conversation(TypedDict):
    """Messages, and the tools that an assistant may call in them: what a chat template takes as `tools`."""

    messages: list[Message]
    tools: list[dict[str, Any]]


PolicyPrompt = str | list[Message] | Conversation  # plain text for a base model, or what the chat template takes


@dataclass(frozen=True)
class Passage:
    """A retrieved passage; `contents` is FlashRAG's form: title, newline, text."""

    id: str
    contents: str
    score: float | None = None


@dataclass(frozen=True)
class OpenedPage:
    """A page of a document, and how many it has; pages count from 1."""

    passages: list[Passage]
    page: int
    pages: int


@dataclass(frozen=True)
class Search:
    """The policy asked for a search."""

    query: str

    @property
    def queries(self) -> list[str]:
        """The query."""
        return [self.query]


@dataclass(frozen=True)
class ToolCall:
    """A tool that the policy called by name; `error`: what is wrong with the call, for the policy (empty: nothing)."""

    name: str
    arguments: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class ToolCalls:
    """The policy called tools, in this order."""

    calls: tuple[ToolCall, ...]

    @property
    def queries(self) -> list[str]:
        """The queries of the calls of `search`. (An MCP server's tool of that name may have none.)"""
        asked = (call.arguments.get("query") for call in self.calls if call.name == "search" and not call.error)
        return [query for query in asked if isinstance(query, str)]


@dataclass(frozen=True)
class Answer:
    """The policy gave its final answer."""

    text: str


@dataclass(frozen=True)
class Invalid:
    """The turn holds neither a search nor an answer; `reason` says what was missing."""

    reason: str


Action = Search | ToolCalls | Answer | Invalid


class StopReason(StrEnum):
    """Why a rollout ended."""

    ANSWERED = "answered"
    MAX_SEARCHES = (
        "max_searches"  # the policy asked for more searches than its budget; those of its last turn were not executed
    )
    MAX_TOKENS = "max_tokens"  # a budget of tokens ran out; the last turn may end in the middle of a tag
    NO_ACTION = "no_action"  # the policy ended its turn without a search or an answer


@dataclass(frozen=True)
class Budget:
    """Limits of one rollout; `None` means no limit. Tokens of observations count towards `response_tokens`.

    A hint after an invalid action (methods that have one) costs a search, and so does every call of a tool.
    """

    response_tokens: int
    turn_tokens: int | None = None
    searches: int | None = None
    observation_tokens: int | None = None
    top_k: int = 5


@dataclass(frozen=True)
class Turn:
    """What the policy wrote in one turn, what it asked for, and what the environment put after it (never the policy's words)."""

    text: str
    action: Action
    observation: str = ""
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """A finished rollout.

    `response_ids`, `response_mask` and `logprobs` have one entry per token after the prompt, in order. The mask is 1 exactly where
    the policy sampled the token and 0 in observations. `logprobs` is empty if the engine gave none, else 0.0 in observations.
    """

    question: str
    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    logprobs: list[float]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    ended_with_eos: bool
    seconds_generating: float = 0.0
    seconds_searching: float = 0.0

    @property
    def searches(self) -> list[str]:
        """The queries whose results the policy was shown, in order. One that was sent, but whose result did not fit, is not included."""
        asked = (turn.action for turn in self.turns if turn.observation)
        return [query for action in asked if isinstance(action, Search | ToolCalls) for query in action.queries]

    @property
    def policy_text(self) -> str:
        """Only what the policy wrote."""
        return "".join(turn.text for turn in self.turns)

    @property
    def text(self) -> str:
        """The whole response: what the policy wrote, and the observations."""
        return "".join(turn.text + turn.observation for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record of the turns, without token ids.

        Passages are recorded by id and score; the text that was shown is in the observation.
        """
        return {
            "question": self.question,
            "stop_reason": str(self.stop_reason),
            "ended_with_eos": self.ended_with_eos,
            "turns": [
                {
                    "text": turn.text,
                    "action": {"kind": type(turn.action).__name__} | asdict(turn.action),
                    "observation": turn.observation,
                    "passages": [{"id": passage.id, "score": passage.score} for passage in turn.passages],
                }
                for turn in self.turns
            ],
        }


@dataclass(frozen=True)
class Reward:
    """The score that training uses, and its named components."""

    score: float
    components: dict[str, float] = field(default_factory=dict)
