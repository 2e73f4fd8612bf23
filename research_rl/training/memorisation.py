"""Memorisation (R1-Searcher++, section 3.4): correct rollouts, rewritten into paths without search, for a likelihood term of the loss.

The method decides whether a rewriting is kept: only if it ends in a right answer, keeps the format, and has no search.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Protocol, runtime_checkable

from research_rl.errors import ConfigError, missing_extra
from research_rl.limits import check_number
from research_rl.types import Message, Trajectory

Complete = Callable[[list[Message]], Awaitable[str]]  # a chat completion


@runtime_checkable
class Memorises(Protocol):
    """What a method needs beyond `Method` if it is to memorise."""

    def rewrite_prompt(self, trajectory: Trajectory, golden_answers: Sequence[str]) -> list[Message]:
        """Return the messages that ask for a path without search."""
        ...

    def extract(self, trajectory: Trajectory) -> str:
        """Return what the policy wrote in a rollout, in the method's format, without its searches."""
        ...

    def right(self, answer: str | None, golden_answers: Sequence[str]) -> bool:
        """Return whether an answer is right: only the paths of right rollouts are memorised."""
        ...

    def accepts(self, text: str, golden_answers: Sequence[str]) -> bool:
        """Return whether a rewritten path keeps the format, has no search, and ends in a right answer."""
        ...


@dataclass(frozen=True)
class Memorisation:
    """The section `research_rl.memorisation`. `rewriter`: `policy` (the model that is trained), `extract` (no model: the rollout's own
    words without its searches), or the URL of an OpenAI-compatible server, ending in /v1, which serves `model`."""

    mu: float = 0.0  # weight of the likelihood term; 0: nothing is rewritten, and the loss is verl's own
    rewriter: str = "policy"
    model: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Memorisation:
        """Check and return the section.

        Raises:
            ConfigError: an unknown key, a negative μ, an unknown rewriter, or a server without `model`.
        """
        valid = [field.name for field in fields(cls)]
        if unknown := sorted(set(section) - set(valid)):
            raise ConfigError(f"research_rl.memorisation: unknown keys {unknown}; valid: {', '.join(valid)}")
        made = cls(**section)
        check_number("research_rl.memorisation.mu", made.mu, "0 or a positive number", low=0)
        check_number("research_rl.memorisation.max_tokens", made.max_tokens, "a positive integer", low=1, whole=True)
        check_number("research_rl.memorisation.temperature", made.temperature, "0 or a positive number", low=0)
        if made.rewriter not in ("policy", "extract") and not made.rewriter.startswith(("http://", "https://")):
            raise ConfigError(
                f"research_rl.memorisation.rewriter={made.rewriter!r} is unknown; valid: policy, extract, or the URL of a server"
            )
        if made.rewriter.startswith("http") and not made.model:
            raise ConfigError(
                "research_rl.memorisation.model is missing: the name under which the rewriter's server knows its model"
            )
        return made


async def memory(
    method: Memorises, settings: Memorisation, trajectory: Trajectory, golden_answers: Sequence[str], policy: Complete
) -> str | None:
    """Return a path without search to the answer of a correct rollout, or None if the rewriting is not accepted."""
    if settings.rewriter == "extract":
        text = method.extract(trajectory)
    else:
        complete = policy if settings.rewriter == "policy" else server(settings)
        text = await complete(method.rewrite_prompt(trajectory, golden_answers))
    return text if method.accepts(text, golden_answers) else None


@cache
def server(settings: Memorisation) -> Complete:
    """Return chat completions of an OpenAI-compatible server (the key comes from OPENAI_API_KEY, if there is one)."""
    try:
        from openai import AsyncOpenAI, BadRequestError, UnprocessableEntityError
    except ModuleNotFoundError as error:
        raise missing_extra("openai", "train") from error
    import os

    key = os.environ.get("OPENAI_API_KEY", "none")
    client = AsyncOpenAI(base_url=settings.rewriter, api_key=key, max_retries=8, timeout=120)

    async def complete(messages: list[Message]) -> str:
        try:
            made = await client.chat.completions.create(
                model=str(settings.model),
                messages=messages,  # type: ignore[arg-type]  # our Message has the keys of OpenAI's type
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
            )
        except (BadRequestError, UnprocessableEntityError):
            return ""  # too long, or filtered: only this path is not accepted
        return made.choices[0].message.content or ""

    return complete
