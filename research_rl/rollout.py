"""The rollout: generate until the method's stop string, search, append the observation, go on. Training, evaluation and chat share it.

Token in, token out: ids that the policy sampled are kept as they are, never decoded and encoded again. Ids, mask and log-probabilities
grow together in `_Tokens` and nowhere else, so the mask is 1 exactly on sampled ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from research_rl.errors import ConfigError, GenerationError
from research_rl.methods.base import Method
from research_rl.neutralize import neutralize
from research_rl.types import Answer, Budget, Invalid, Passage, Search, StopReason, ToolCall, ToolCalls, Trajectory, Turn


@dataclass(frozen=True)
class Generation:
    """One call's sampled ids, in order, stop string and EOS included; `logprobs` is empty or as long as `token_ids`."""

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)


_CHARACTERS_PER_TOKEN = 4  # of English text, about: where the search for the widest cut begins
Generate = Callable[[list[int], int, tuple[str, ...]], Awaitable[Generation]]  # (ids so far, most new ids, stop strings)
SearchFunction = Callable[[list[str], int], Awaitable[list[list[Passage]]]]  # (queries, top-k)
# (a call, top-k, ids of the passages shown before, in order): `research_rl.tools.base.Toolbox` is one
CallFunction = Callable[[ToolCall, int, Sequence[str]], Awaitable[list[Passage]]]


class Codec(Protocol):
    """What the rollout needs of a tokenizer (`research_rl.codec` makes it from a Hugging Face one)."""

    eos_ids: frozenset[int]
    special_tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Return ids without adding any special token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        ...

    def as_read(self, text: str) -> str:
        """Return a text after the tokenizer's own normalisation."""
        ...

    def tool_results(self, contents: Sequence[str]) -> str:
        """Return the chat template's frame around the results of tools, up to where the assistant writes again."""
        ...


class _Tokens:
    """Ids, mask and log-probabilities of a response, always of one length."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []

    def sampled(self, generation: Generation) -> None:
        self.ids += generation.token_ids
        self.mask += [1] * len(generation.token_ids)
        self.logprobs += generation.logprobs

    def observed(self, ids: list[int], with_logprobs: bool) -> None:
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids) if with_logprobs else []


async def rollout(
    method: Method,
    codec: Codec,
    question: str,
    prompt_ids: list[int],
    budget: Budget,
    generate: Generate,
    search: SearchFunction,
    call: CallFunction | None = None,
) -> Trajectory:
    """Roll out one question and return its trajectory. `call` executes the calls of a method that has tools.

    A rollout ends with MAX_TOKENS if a token budget cuts a turn short (perhaps in the middle of a tag), or an observation no longer fits.
    Tool calls are executed only if the policy has ended its message, and each counts as a search.

    Raises:
        RetrievalError: from `search`; an outage is never turned into a trajectory.
        GenerationError: the engine returned no token or too many, or log-probabilities of another length.
        ConfigError: the policy called a tool, and `call` is None.
    """
    tokens, turns = _Tokens(), []
    clock = {"generate": 0.0, "search": 0.0}
    observations = 0
    while True:
        room = budget.response_tokens - len(tokens.ids)
        limit = min(room, budget.turn_tokens or room)
        if limit < 1:
            stop, ended = StopReason.MAX_TOKENS, False
            break
        started = time.perf_counter()
        generation = await generate(prompt_ids + tokens.ids, limit, method.stop)
        clock["generate"] += time.perf_counter() - started
        _check(generation, limit)
        tokens.sampled(generation)
        ended = generation.token_ids[-1] in codec.eos_ids
        text = codec.decode(generation.token_ids[:-1] if ended else generation.token_ids)
        action = method.parse(text)
        turns.append(Turn(text, action))
        hint = method.hint(action) if isinstance(action, Invalid) else ""
        cut = not ended and len(generation.token_ids) >= limit
        if isinstance(action, ToolCalls) and not ended:  # results may follow a finished message only
            stop = StopReason.MAX_TOKENS if cut else StopReason.NO_ACTION
            break
        if not isinstance(action, Search | ToolCalls) and (not hint or observations == budget.searches):
            stop = StopReason.MAX_TOKENS if cut else StopReason.ANSWERED if isinstance(action, Answer) else StopReason.NO_ACTION
            break
        cost = len(action.calls) if isinstance(action, ToolCalls) else 1
        if budget.searches is not None and observations + cost > budget.searches:
            stop = StopReason.MAX_SEARCHES
            break
        if isinstance(action, Search | ToolCalls):
            started = time.perf_counter()
            known = [passage.id for turn in turns for passage in turn.passages]
            results = await _results(action, search, call, budget.top_k, known)
            clock["search"] += time.perf_counter() - started
            observation, ids, shown = observe(method, codec, results, budget.observation_tokens)
        else:
            observation, ids, shown = hint, codec.encode(hint), ()
        observations += cost
        if len(tokens.ids) + len(ids) >= budget.response_tokens:  # no room to go on after it
            stop = StopReason.MAX_TOKENS
            break
        tokens.observed(ids, with_logprobs=bool(generation.logprobs))
        turns[-1] = replace(turns[-1], observation=observation, passages=shown)
    return Trajectory(
        question,
        prompt_ids,
        tokens.ids,
        tokens.mask,
        tokens.logprobs,
        tuple(turns),
        stop,
        ended,
        clock["generate"],
        clock["search"],
    )


async def _results(
    action: Search | ToolCalls, search: SearchFunction, call: CallFunction | None, top_k: int, known: Sequence[str]
) -> list[list[Passage]]:
    if isinstance(action, Search):
        return await search([action.query], top_k)
    if call is None:
        raise ConfigError("the method calls tools, but nothing in this rollout can execute them: pass `call` (a Toolbox)")
    return list(await asyncio.gather(*(call(one, top_k, known) for one in action.calls)))


def _check(generation: Generation, limit: int) -> None:
    if not generation.token_ids:
        raise GenerationError(f"the engine returned no token although {limit} were allowed")
    if len(generation.token_ids) > limit:
        raise GenerationError(f"the engine returned {len(generation.token_ids)} tokens, {limit} were allowed")
    if generation.logprobs and len(generation.logprobs) != len(generation.token_ids):
        raise GenerationError(
            f"the engine returned {len(generation.logprobs)} log-probabilities for {len(generation.token_ids)} tokens"
        )


_Shown = tuple[str, list[int], tuple[Passage, ...]]  # an observation's text, ids and passages


def observe(method: Method, codec: Codec, results: list[list[Passage]], limit: int | None) -> _Shown:
    """Return the observation of one turn's results: text, ids, and the passages as they are shown.

    Passages are shortened evenly until the observation fits in `limit` tokens, and neutralised (see `silence`). For a method with tools,
    each row is the result of one call, and the chat template's frame is put around the results.
    """
    if method.tools:  # ids are shown, so that they can be opened
        results = [[replace(one, id=silence(one.id, method, codec)) for one in row] for row in results]

    def render(width: int | None) -> _Shown:
        # cut first, then neutralise: so the result of the cut is neutralised, too, and no time is spent on what is cut off
        cut = [[replace(one, contents=silence(one.contents[:width], method, codec)) for one in row] for row in results]
        text = codec.tool_results([method.render([row]) for row in cut]) if method.tools else method.render(cut)
        return text, codec.encode(text), tuple(passage for row in cut for passage in row if passage.id or not method.tools)

    if limit is None:
        return render(None)
    longest = max((len(passage.contents) for row in results for passage in row), default=0)
    passages = max(1, sum(map(len, results)))
    return render(_widest(lambda width: len(render(width)[1]), limit, longest, limit * _CHARACTERS_PER_TOKEN // passages))


def silence(text: str, method: Method, codec: Codec) -> str:
    """Return a passage's text without tags and special tokens, neither before nor after the tokenizer's normalisation.

    Only the spaces of `neutralize` are inserted. If a tag or special token appears only through the normalisation, the result is the
    normalised text, neutralised.
    """
    forbidden = _forbidden(tuple(method.tags), codec)
    clean = neutralize(text, forbidden)
    read = codec.as_read(clean)
    quiet = read if read == clean else neutralize(read, forbidden)
    return clean if quiet == read else quiet


@lru_cache(maxsize=8)
def _forbidden(tags: tuple[str, ...], codec: Codec) -> tuple[str, ...]:
    words = {*tags, *codec.special_tokens}
    return tuple(sorted(words | {codec.as_read(word) for word in words}))


def _widest(tokens: Callable[[int], int], limit: int, longest: int, guess: int) -> int:
    """Return the widest cut of at most `longest` characters that has at most `limit` tokens; 0 if none has.

    To encode a long text takes milliseconds, in the event loop that all rollouts share. So the search starts near the expected width and
    moves away from it in growing steps, instead of bisecting the whole range.
    """
    width = min(max(guess, 1), longest)
    if (found := tokens(width)) > limit or width < longest:
        width = min(width * limit // max(found, 1), longest)
    low, high, step = 0, longest, max(width // 32, 4)  # `low` fits, if anything does; nothing wider than `high` fits
    while low < high:
        if tokens(width) <= limit:
            low, width = width, min(width + step, high)
        else:
            high, width = width - 1, max(width - step, low + 1)
        if low > 0 and high < longest:  # the answer is between them
            width = (low + high + 1) // 2
        step *= 2
    return low
