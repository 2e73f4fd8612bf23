"""Reports the tools of a run's MCP server."""

from __future__ import annotations

import json
from collections.abc import Iterator

from research_rl.tools.mcp import McpTool
from research_rl.verl_plugin.doctor.finding import Finding, check, ok
from research_rl.verl_plugin.doctor.setup import Setup


@check("MCP server", "none (research_rl.method_options.mcp is not given)", "settings")
def mcp_server(setup: Setup) -> Iterator[Finding]:
    """Report the tools that it has listed; if it does not answer, the check of the section has reported that."""
    settings = setup.settings
    assert settings is not None
    tools = [tool for tool in settings.load().tools.values() if isinstance(tool, McpTool)]
    if tools:
        size = sum(len(json.dumps(tool.schema(), ensure_ascii=False)) for tool in tools)
        yield ok(
            f"{tools[0].url} answers, and its tools are {', '.join(tool.name for tool in tools)}: {size:,} characters of every prompt"
        )
