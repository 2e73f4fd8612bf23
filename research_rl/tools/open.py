"""`open(id, page)`: read on in the document of a passage; and what the opens of a trajectory were."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research_rl.tools.base import Service, Tool, told
from research_rl.types import Passage, ToolCalls, Trajectory

_PAGE = re.compile(r"Page (\d+) of (\d+)\.")
_NONE = "there is no passage with this id, or its document has no such page"
_MOST_IDS, _MOST_CHARACTERS = 8, 400  # that an error names


class OpenTool(Tool):
    """Open the document that a passage is from, page by page."""

    name: ClassVar[str] = "open"
    description: ClassVar[str] = "Read the document that a passage is from, a page at a time."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The id of a passage, as search shows it in brackets."},
            "page": {"type": "integer", "description": "The page, from 1 on. Default: the one with the passage."},
        },
        "required": ["id"],
    }

    async def call(self, service: Service, arguments: Mapping[str, Any], top_k: int) -> list[Passage]:
        found = await service.open(arguments["id"], arguments.get("page"))
        if found is None:
            return [told(_NONE)]
        return [*found.passages, Passage("", f"Page {found.page} of {found.pages}.")]

    async def answer(self, service: Service, arguments: Mapping[str, Any], top_k: int, shown: Sequence[str]) -> list[Passage]:
        """Return what `call` does. If it finds nothing for an id that was not shown, the error also names ids that were."""
        found = await self.call(service, arguments, top_k)
        return [told(f"{_NONE}; {_told(shown)}")] if found == [told(_NONE)] and arguments["id"] not in shown else found


def _told(shown: Sequence[str]) -> str:
    """Return a sentence with the newest of some ids, each whole: one that is cut could not be opened."""
    different = list(dict.fromkeys(reversed(shown)))
    named, left = [], _MOST_CHARACTERS
    for one in different:
        if len(one) <= left and len(named) < _MOST_IDS:
            named.append(one)
            left -= len(one)
    if not named:
        return "no id was shown yet" if not shown else "the ids that were shown are too long to be named"
    ids = ", ".join(f"[{one}]" for one in reversed(named))
    return f"{'ids that were shown' if len(named) == len(different) else 'some ids that were shown'}: {ids}"


@dataclass(frozen=True)
class Opened:
    """A call of `open` that was answered: whether an earlier turn had shown its id, and whether the same call was made before."""

    shown: bool
    again: bool


def opened(turns: Iterable[tuple[Iterable[Mapping[str, Any]], Collection[str]]]) -> list[Opened]:
    """Return the opens of a trajectory, in order. Of each turn: the arguments of its opens, and the ids that were shown after it."""
    shown: set[str] = set()
    asked: set[tuple[str, str]] = set()
    found = []
    for calls, ids in turns:
        for arguments in calls:
            one = (str(arguments.get("id")), str(arguments.get("page")))
            found.append(Opened(one[0] in shown, one in asked))
            asked.add(one)
        shown.update(ids)
    return found


def opened_in(trajectory: Trajectory, tools: Mapping[str, Tool]) -> list[Opened]:
    """Return the opens of a trajectory by the `OpenTool` among a method's tools.

    In a trajectory that other software recorded, passages are not separated: an id counts as shown if an observation has it in brackets.
    """
    names = {name for name, tool in tools.items() if isinstance(tool, OpenTool)}
    answered = [
        (turn, turn.action.calls) for turn in trajectory.turns if turn.observation and isinstance(turn.action, ToolCalls)
    ]
    opens = [[call.arguments for call in calls if call.name in names and not call.error] for _, calls in answered]
    asked = set() if trajectory.response_ids else {str(arguments.get("id")) for calls in opens for arguments in calls}
    shown = [
        {passage.id for passage in turn.passages} or {one for one in asked if f"[{one}]" in turn.observation}
        for turn, _ in answered
    ]
    return opened(zip(opens, shown, strict=True))


def page_of(result: Sequence[Passage]) -> tuple[int, int]:
    """Return the page number and the number of pages in a result of `open`; (0, 0) for any other result."""
    said = _PAGE.fullmatch(result[-1].contents) if result and not result[-1].id else None
    return (int(said[1]), int(said[2])) if said else (0, 0)
