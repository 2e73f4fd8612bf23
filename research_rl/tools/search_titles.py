"""`search(query)` that shows only titles and beginnings of passages: for agents that choose what to open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from research_rl.tools.base import Service
from research_rl.tools.search import SearchTool
from research_rl.types import Passage

CHARACTERS = 100  # of a passage's text: about twenty words


class SearchTitlesTool(SearchTool):
    """Search the corpus, and show the title and the beginning of each passage."""

    description: ClassVar[str] = (
        "Search the corpus. Returns the best passages: id in brackets, title, how it begins. Open one to read it."
    )

    async def call(self, service: Service, arguments: Mapping[str, Any], top_k: int) -> list[Passage]:
        return [replace(one, contents=beginning(one.contents)) for one in await super().call(service, arguments, top_k)]


def beginning(contents: str) -> str:
    """Return a passage's title and, in a line of its own, at most `CHARACTERS` of its text, cut between words."""
    title, newline, text = contents.partition("\n")
    if not newline:
        title, text = "", contents
    if len(text) > CHARACTERS:
        text = f"{text[: CHARACTERS + 1].rpartition(' ')[0] or text[:CHARACTERS]} …"
    return f"{title}{newline}{text}"
