"""`search(query)`: the passages that the retrieval service finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from research_rl.tools.base import Service, Tool
from research_rl.types import Passage


class SearchTool(Tool):
    """Search the corpus."""

    name: ClassVar[str] = "search"
    description: ClassVar[str] = "Search the corpus. Returns the best passages, each with its id in brackets."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to search for."}},
        "required": ["query"],
    }

    async def call(self, service: Service, arguments: Mapping[str, Any], top_k: int) -> list[Passage]:
        [found] = await service.search([arguments["query"]], top_k)
        return found
