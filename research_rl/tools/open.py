"""`open(id, page)`: read on in the document of a passage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from research_rl.tools.base import Service, Tool, told
from research_rl.types import Passage

_PAGE = re.compile(r"Page (\d+) of (\d+)\.")


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
            return [told("there is no passage with this id, or its document has no such page")]
        return [*found.passages, Passage("", f"Page {found.page} of {found.pages}.")]


def page_of(result: Sequence[Passage]) -> tuple[int, int]:
    """Return the page number and the number of pages in a result of `open`; (0, 0) for any other result."""
    said = _PAGE.fullmatch(result[-1].contents) if result and not result[-1].id else None
    return (int(said[1]), int(said[2])) if said else (0, 0)
