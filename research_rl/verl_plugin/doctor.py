"""``python -m research_rl.verl_plugin.doctor``: is everything wired up? verl hides a plugin that fails, so this looks."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator

from research_rl.verl_plugin.checks import _check_service


def entry_point(group: str, name: str) -> str:
    """Return the value of an entry point that must load."""
    found = [point for point in importlib.metadata.entry_points(group=group) if point.name == name]
    if not found:
        raise LookupError(f"no entry point {name!r} in group {group!r}: install the package (pip install -e .)")
    found[0].load()
    return found[0].value


def checks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (what is checked, the check)."""
    yield "verl is 0.9.1", lambda: _version("verl", "0.9.1")
    yield "verl finds the plugin", lambda: entry_point("verl.plugins", "research_rl")
    yield "vLLM finds the plugin", lambda: entry_point("vllm.general_plugins", "research_rl_cpu")
    yield "the agent loop registers", lambda: importlib.import_module("research_rl.verl_plugin.agent_loop").NAME
    if url := os.environ.get("RETRIEVAL_URL"):
        yield f"the service at {url} answers", lambda: _check_service(url)


def _version(package: str, wanted: str) -> str:
    found = importlib.metadata.version(package)
    if found != wanted:
        raise RuntimeError(f"{package} {wanted} is needed, {found} is installed")
    return found


def main() -> int:
    """Run all checks; return 1 if one fails."""
    failed = 0
    for name, check in checks():
        try:
            result = check()
        except Exception as error:
            failed = 1
            print(f"FAILED  {name}: {error}")
        else:
            print(f"ok      {name}{f' ({result})' if isinstance(result, str) else ''}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
