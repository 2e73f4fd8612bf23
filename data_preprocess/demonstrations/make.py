"""Plans played out: queries go to the retrieval service, observations are rendered as in a rollout, and the method writes the turns."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_preprocess.cold_start import segments, training_row
from data_preprocess.demonstrations.evidence import Task
from data_preprocess.demonstrations.plan import Plan, Told
from research_rl.codec import HFCodec, encode_row
from research_rl.errors import ConfigError
from research_rl.methods.base import Method
from research_rl.neutralize import neutralize
from research_rl.questions import Dropped
from research_rl.rollout import Codec, observe
from research_rl.tools.base import Service, Toolbox
from research_rl.types import Answer, Passage, Search, StopReason, ToolCall, ToolCalls, Trajectory, Turn

QUERIES = 64  # of one request
_MALFORMED = "it does not read back in the method's protocol"


class NoTokens:
    """Stands in for a tokenizer where tokens are not counted."""

    eos_ids: frozenset[int] = frozenset()
    special_tokens: tuple[str, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Return nothing."""
        return []

    def decode(self, ids: Sequence[int]) -> str:
        """Return nothing."""
        return ""

    def as_read(self, text: str) -> str:
        """Return the text as it is."""
        return text

    def tool_results(self, contents: Sequence[str]) -> str:
        """Raise ConfigError: only a chat template says how results of tools are told."""
        raise ConfigError(
            "demonstrations of a method with tools are written in the model's chat template: name its --tokenizer"
        )


@dataclass
class Made:
    """Rows for supervised training, and what is to be known of them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # why questions were skipped
    searches: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)  # of tools, by name
    habits: Counter[str] = field(default_factory=Counter)
    tokens: list[tuple[int, int]] = field(default_factory=list)  # of each row, and those of them that are targets


@dataclass
class _Play:
    task: Task
    plan: Plan
    toolbox: Toolbox
    asked: Search | ToolCall | None = None
    turns: list[Turn] = field(default_factory=list)
    end: Told | None = None


class Maker:
    """Makes demonstrations of one method."""

    def __init__(
        self,
        method: Method,
        codec: Codec,
        service: Service,
        plans: Callable[[Task, random.Random], Plan],
        top_k: int,
        seed: int,
        observation_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """`codec`: `NoTokens`, or the tokenizer that counts; `observation_tokens`: as in a rollout; `max_tokens`: of a row."""
        self._method, self._codec, self._service, self._plans = method, codec, service, plans
        self._top_k, self._seed, self._observation_tokens, self._max_tokens = top_k, seed, observation_tokens, max_tokens
        self._forbidden = (*method.tags, *codec.special_tokens)

    async def add(self, tasks: Sequence[Task], made: Made, most: int | None = None) -> None:
        """Play the plans of some questions and add their rows to `made`, in order; it gets `most` rows at most.

        Raises:
            RetrievalError: from the service.
        """
        plays = [
            _Play(task, self._plans(task, random.Random(f"{self._seed}/{task.id}")), Toolbox(self._method.tools, self._service))
            for task in tasks
        ]
        live = [play for play in plays if self._advance(play, None, made)]
        while live:
            found = await self._answers(live)
            live = [play for play, results in zip(live, found, strict=True) if self._advance(play, results, made)]
        for play in plays:
            if play.end and (most is None or len(made.rows) < most):
                self._finish(play, play.end, made)

    async def _answers(self, plays: Sequence[_Play]) -> list[list[Passage]]:
        """Return what each is shown for what it asks: calls go to the method's tools; without tools, searches go in batches."""
        calls = [
            play.toolbox(play.asked, self._top_k, [passage.id for turn in play.turns for passage in turn.passages])
            for play in plays
            if isinstance(play.asked, ToolCall)
        ]
        if calls:
            return list(await asyncio.gather(*calls))
        queries = [play.asked.query for play in plays if isinstance(play.asked, Search)]
        parts = [queries[at : at + QUERIES] for at in range(0, len(queries), QUERIES)]
        return [
            row for rows in await asyncio.gather(*(self._service.search(part, self._top_k) for part in parts)) for row in rows
        ]

    def _advance(self, play: _Play, results: list[Passage] | None, made: Made) -> bool:
        """Send a plan what was found; return whether it asks on."""
        passages = None
        if results is not None:
            text, _, shown = observe(self._method, self._codec, [results], self._observation_tokens)
            said = play.turns[-1]
            play.turns[-1] = Turn(said.text, said.action, text, shown)
            passages = (*shown, *(one for one in results if not one.id)) if self._method.tools else shown
        try:
            thought, wish = play.plan.send(passages)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            play.end = end.value
            return False
        except Dropped as reason:
            made.reasons[str(reason)] += 1
            return False
        text = self._follow(play, self._written(neutralize(thought, self._forbidden), wish))
        action = self._method.parse(text)
        play.asked = asked_for(action)
        if play.asked is None or (isinstance(wish, ToolCall) and play.asked != wish):
            made.reasons[_MALFORMED] += 1
            return False
        play.turns.append(Turn(text, action))
        return True

    def _written(self, thought: str, wish: Search | ToolCall) -> str:
        if isinstance(wish, Search):
            return self._method.write_search(thought, neutralize(wish.query, self._forbidden))
        return self._method.write_call(thought, wish.name, wish.arguments)

    def _follow(self, play: _Play, text: str) -> str:
        """Return a turn, without the space before its first word if what precedes it ends in white space or is empty (messages)."""
        prompt = self._method.prompt(play.task.question)
        before = (
            play.turns[-1].observation if play.turns else (prompt if isinstance(prompt, str) else "") + self._method.prefill
        )
        return text if before.rstrip() == before != "" else text.lstrip()

    def _finish(self, play: _Play, end: Told, made: Made) -> None:
        method, question = self._method, play.task.question
        text = self._follow(play, method.write_answer(neutralize(end.thought, self._forbidden), end.answer))
        turns = (*play.turns, Turn(text, method.parse(text)))
        trajectory = Trajectory(question, [], [], [], [], turns, StopReason.ANSWERED, ended_with_eos=True)
        reads_back = isinstance(turns[-1].action, Answer) and method.answer(trajectory) == end.answer
        if not reads_back or not method.well_formed(trajectory):
            made.reasons[_MALFORMED] += 1
            return
        row = training_row(method, play.task.id, question, segments(trajectory))
        if isinstance(self._codec, HFCodec):
            ids, mask = encode_row(self._codec, row)
            if self._max_tokens and len(ids) > self._max_tokens:
                made.reasons[f"longer than {self._max_tokens} tokens"] += 1
                return
            made.tokens.append((len(ids), sum(mask)))
        made.rows.append(row)
        made.searches[len(trajectory.searches)] += 1
        made.calls.update(call.name for turn in turns if isinstance(turn.action, ToolCalls) for call in turn.action.calls)
        made.habits.update(end.habits)


def asked_for(action: object) -> Search | ToolCall | None:
    """Return the one thing that a turn asks for; None if it asks for nothing, for several, or for what cannot be answered."""
    if isinstance(action, ToolCalls):
        return action.calls[0] if len(action.calls) == 1 and not action.calls[0].error else None
    return action if isinstance(action, Search) else None


def summary(made: Made) -> dict[str, Any]:
    """Return the card's figures."""
    lengths, targets = [total for total, _ in made.tokens], [learnt for _, learnt in made.tokens]
    tokens = {
        name: {"mean": round(sum(values) / len(values), 1), "max": max(values)}
        for name, values in (("row", lengths), ("targets", targets))
        if values
    }
    return {
        "rows": len(made.rows),
        "skipped": dict(made.reasons.most_common()),
        "searches": {str(count): rows for count, rows in sorted(made.searches.items())},
        "habits": dict(sorted(made.habits.items())),
        **({"calls": dict(made.calls)} if made.calls else {}),
        **({"tokens": tokens} if tokens else {}),
    }
