"""Checks the installation: packages fit together, and verl and vLLM load the plugins (verl hides a plugin that fails)."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator

from research_rl.errors import ConfigError
from research_rl.verl_plugin.doctor.finding import Finding, check, error, ok
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.versions import KNOWN, known, table
from research_rl.verl_plugin.hooks import moved


@check("versions", "")
def versions(_: Setup) -> Iterator[Finding]:
    """Check that the installed packages meet one another's requirements, and report whether this set of versions was tried."""
    rows = table()
    how = "docs/howto/sglang.md" if rows[-1].package == "sglang" else "`make install`, or pip install 'research-rl[gpu]'"
    for row in rows:
        if row.unmet:
            do = f"Install what fits: {how}"
            yield error(
                f"{row.package} must meet what other packages require: {', '.join(row.unmet)}", row.installed or "none", do
            )
    if not any(row.unmet for row in rows):
        sets = "; ".join(", ".join(f"{name} {version}" for name, version in each.items()) for each in KNOWN.values())
        installed = ", ".join(f"{row.package} {row.installed}" for row in rows)
        yield ok(
            f"{installed}: {f'a known set ({source})' if (source := known()) else f'fits, but is not a known set; these are: {sets}'}"
        )


@check("plugin of verl", "verl finds the plugin, which can be loaded")
def verl_plugin(_: Setup) -> Iterator[Finding]:
    """Load the entry point, and check that nothing keeps verl from it. A training ends at once if verl has not loaded it."""
    _entry_point("verl.plugins", "research_rl")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "research_rl" not in {name.strip() for name in policy.split(",")}:
        yield error(
            "VERL_USE_EXTERNAL_PLUGINS must let verl load research_rl", repr(policy), "Unset it, or add research_rl to it"
        )


@check("hooks", "verl has everything that the plugin uses")
def hooks(_: Setup) -> Iterator[Finding]:
    """Look for functions that a newer verl has moved or renamed."""
    for told in moved():
        yield error(told, "", f"Install a verl that was tried: {', '.join(sorted({one['verl'] for one in KNOWN.values()}))}")


@check("plugin of vLLM", "vLLM finds the plugin")
def vllm_plugin(_: Setup) -> Iterator[Finding]:
    """Load the entry point."""
    _entry_point("vllm.general_plugins", "research_rl_cpu")
    return iter(())


def _entry_point(group: str, name: str) -> None:
    """Load an entry point.

    Raises:
        ConfigError: there is none, or it cannot be loaded.
    """
    found = [point for point in importlib.metadata.entry_points(group=group) if point.name == name]
    if not found:
        raise ConfigError(f"no entry point {name!r} in group {group!r}. Install the package: pip install -e .")
    try:
        found[0].load()
    except Exception as failure:  # any error: verl and vLLM only log it
        raise ConfigError(
            f"the entry point {found[0].value} cannot be loaded ({type(failure).__name__}: {failure})"
        ) from failure
