"""What mkdocs is told beyond mkdocs.yml: pages that stand elsewhere in the repository, and links to files that are no pages.

Links in the sources are relative to where a file stands in the repository, so that they work there, too. Here they are turned into links
of the site: to the page of that file, or else to a copy of it as text under `files/`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    "recipes/**/README.md",
    "examples/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)  # pages of the site that do not stand in docs/
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?(?P<after>\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside docs/, and the files that pages link to."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    wanted = {
        target for file in files.documentation_pages() for _, target in _links(file.content_string, _source(file.src_uri))
    }
    for target in sorted(wanted):
        if target.is_file() and _page(target, files) is None:
            files.append(File.generated(config, _copy(target), content=target.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links of the site."""
    here = PurePosixPath(page.file.src_uri).parent
    source = _source(page.file.src_uri)

    def site_link(match: re.Match[str]) -> str:
        target = (source.parent / match["target"]).resolve()
        name = _page(target, files) or (_copy(target) if target.is_file() else None)
        if name is None:
            return match[0]
        return f"{match['before']}{os.path.relpath(name, here)}{match['anchor'] or ''}{match['after']}"

    return _outside_fences(markdown, lambda text: LINK.sub(site_link, text))


def _source(src_uri: str) -> Path:
    """Return where a page of the site stands in the repository."""
    inside = ROOT / "docs" / src_uri
    return inside if inside.is_file() else ROOT / src_uri


def _page(target: Path, files: Files) -> str | None:
    """Return the site's name of a file of the repository, or of a folder's README."""
    path = target / "README.md" if target.is_dir() else target
    if path == ROOT / "README.md":
        return "index.md"
    for base in (ROOT / "docs", ROOT):
        if path.is_relative_to(base) and (name := path.relative_to(base).as_posix()) in files.src_uris:
            return name
    return None


def _copy(target: Path) -> str:
    return f"files/{target.relative_to(ROOT).as_posix()}.txt"


def _links(markdown: str, source: Path) -> list[tuple[str, Path]]:
    text = FENCE.sub("", markdown)
    found = [(match["target"], (source.parent / match["target"]).resolve()) for match in LINK.finditer(text)]
    return [(name, path) for name, path in found if path.is_relative_to(ROOT)]


def _outside_fences(markdown: str, change: Any) -> str:
    pieces, start = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [change(markdown[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*pieces, change(markdown[start:])])
