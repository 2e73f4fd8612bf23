"""The table of supported versions: `python -m docs.tools.versions` writes it into docs/versions.md, from what the doctor knows."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from research_rl.files import write_text
from research_rl.verl_plugin.doctor.versions import ENGINES, KNOWN, pythons

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
COLUMNS = ("verl", "torch", "transformers", "TransferQueue")


def table() -> str:
    """Return the table, in Markdown: a row for each set that the doctor knows."""
    wanted = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"])
    python = ", ".join(version for version in pythons() if version in wanted)
    lines = [f"| set | {' | '.join(COLUMNS)} | engine | Python |", "|---" * (len(COLUMNS) + 3) + "|"]
    for source, versions in KNOWN.items():
        engine = next(name for name in ENGINES if name in versions)
        lines.append(
            f"| {source} | {' | '.join(versions[name] for name in COLUMNS)} | {engine} {versions[engine]} | {python} |"
        )
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with the table that holds now."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
