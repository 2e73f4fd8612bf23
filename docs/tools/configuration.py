"""The keys of research_rl/config/research_rl.yaml with their comments: `python -m docs.tools.configuration` writes the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from research_rl.files import write_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "configuration.md"
SOURCE = ROOT / "research_rl" / "config" / "research_rl.yaml"
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?(?:\s*# (?P<told>.*))?$")
HEAD = """# Configuration

A recipe is YAML over verl's own configuration. These are the keys that research-rl adds, and verl's keys that it sets, from the comments of
[research_rl.yaml](../../research_rl/config/research_rl.yaml). Written by `python -m docs.tools.configuration`; a test compares.

Set them in a recipe, or on the command line: `research-rl train RECIPE.yaml research_rl.top_k=3`. An unknown key is an error that
names the nearest valid one. The rules of `research_rl.health` are in [health](../health.md#rules), those of a stage in
[stages](../concepts/stages.md).
"""


def page() -> str:
    """Return the page."""
    lines, section = [HEAD], ""
    for path, value, told in _keys(SOURCE.read_text(encoding="utf-8")):
        if (top := path.split(".")[0]) != section:
            section = top
            lines.append(f"## {section}\n")
        default = f"default `{value}`" if value else ""
        lines += [f"`{path}`", f":   {'; '.join(part for part in (told, default) if part)}\n"]
    return "\n".join(lines).rstrip() + "\n"


def _keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield dotted path, default and comment of every key; of a section only if it has a comment."""
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        if not (match := LINE.fullmatch(line)) or match["key"] == "defaults":
            continue
        indent = len(match["indent"])
        stack = [(depth, key) for depth, key in stack if depth < indent] + [(indent, match["key"])]
        value, told = (match["value"] or "").strip(), match["told"] or ""
        if value or told:
            yield ".".join(key for _, key in stack), value, told


if __name__ == "__main__":
    write_text(PAGE, page())
