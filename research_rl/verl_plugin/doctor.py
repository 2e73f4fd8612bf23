"""``python -m research_rl.verl_plugin.doctor``: is everything wired up? verl hides a plugin that fails, so this looks."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator

from research_rl.verl_plugin.checks import _check_service
from research_rl.verl_plugin.versions import KNOWN, known, table


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
    yield "the versions fit together", fit
    yield "verl finds the plugin", lambda: entry_point("verl.plugins", "research_rl")
    yield "vLLM finds the plugin", lambda: entry_point("vllm.general_plugins", "research_rl_cpu")
    yield "the agent loop registers", lambda: importlib.import_module("research_rl.verl_plugin.agent_loop").NAME
    if url := os.environ.get("RETRIEVAL_URL"):
        yield f"the service at {url} answers", lambda: _check_service(url)


def fit() -> str:
    """Return a table of the versions that have to fit, and what the set is known from.

    Raises:
        RuntimeError: one does not; the message is the table.
    """
    rows = table()
    lines = ["", f"    {'package':14}{'installed':12}asked for by"]
    for row in rows:
        unmet = f"  NOT MET: {', '.join(row.unmet)}" if row.unmet else ""
        lines.append(f"    {row.package:14}{row.installed or '-':12}{'; '.join(row.asked) or '-'}{unmet}")
    if any(row.unmet for row in rows):
        raise RuntimeError("\n".join(lines))
    if source := known():
        return "\n".join([*lines, f"    a known set: {source}"])
    lines.append("    not a known set; these are:")
    for source, versions in KNOWN.items():
        lines.append(f"    {', '.join(f'{name} {version}' for name, version in versions.items())} ({source})")
    return "\n".join(lines)


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
            told = "" if not isinstance(result, str) else result if "\n" in result else f" ({result})"
            print(f"ok      {name}{told}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
