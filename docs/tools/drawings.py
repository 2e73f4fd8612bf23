"""The drawings of the README: `python -m docs.tools.drawings` writes docs/assets/{picture,trajectory,plot}-{light,dark}.svg.

The trajectory is a recorded one (docs/assets/trajectory.json), the plot is made of the first table of docs/measured.md.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from research_rl.files import write_text

DOCS = Path(__file__).parents[1]
ASSETS = DOCS / "assets"
WIDTH = 720
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
SERVICE = ("your corpus or the web", "BM25, dense, hybrid", "its own process,", "its own machine")
SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours, those of the viewer: `policy` is what the model wrote, `seen` what the environment put there."""

    text: str
    muted: str
    line: str
    panel: str
    policy: str
    policy_back: str
    seen: str
    seen_back: str
    strong: str


THEMES = {
    "light": Theme("#1f2937", "#64748b", "#cbd5e1", "#f8fafc", "#1e3a8a", "#dbeafe", "#78350f", "#fef3c7", "#2563eb"),
    "dark": Theme("#e2e8f0", "#94a3b8", "#475569", "#141d31", "#bfdbfe", "#172a4d", "#fde68a", "#3a2c10", "#60a5fa"),
}


def drawings() -> dict[str, str]:
    """Return every drawing by its file's name."""
    made = {}
    for name, theme in THEMES.items():
        made[f"picture-{name}.svg"] = picture(theme)
        made[f"trajectory-{name}.svg"] = trajectory(theme, json.loads((ASSETS / "trajectory.json").read_text(encoding="utf-8")))
        made[f"plot-{name}.svg"] = plot(theme, seeds((DOCS / "measured.md").read_text(encoding="utf-8")))
    return made


def picture(theme: Theme) -> str:
    """Return what talks to what: the trainer, the rollout loop and the retrieval service."""
    one, two = theme.policy_back, theme.seen_back
    parts = [
        _box(10, 40, 400, 200, theme.panel, theme.line),
        _text(28, 68, "Trainer (verl, vLLM)", theme.text, 17, 600),
        _box(28, 88, 364, 58, one, theme.strong),
        _text(42, 112, "The model writes", theme.policy, 15, 600),
        _text(42, 133, "thoughts, queries, an answer: trained on", theme.policy, 13.5),
        _box(28, 164, 364, 58, two, theme.seen),
        _text(42, 188, "It reads", theme.seen, 15, 600),
        _text(42, 209, "the passages found: masked, never trained on", theme.seen, 13.5),
        _box(510, 40, 200, 200, theme.panel, theme.line),
        _text(526, 68, "Retrieval service", theme.text, 17, 600),
        *(_text(526, 108 + 22 * i, told, theme.muted, 13.5) for i, told in enumerate(SERVICE)),
        _arrow(392, 117, 507, 117, theme.strong),
        _text(458, 106, "query", theme.strong, 14, anchor="middle"),
        _arrow(510, 193, 396, 193, theme.seen),
        _text(458, 182, "passages", theme.seen, 14, anchor="middle"),
        _text(
            10, 22, "Many rollouts of each question; a reward for each answer; better ones become likelier.", theme.muted, 14
        ),
    ]
    return _svg(250, "The trainer's model sends queries to the retrieval service and reads the passages", parts)


def trajectory(theme: Theme, record: dict[str, object]) -> str:
    """Return a recorded trajectory: every line in the colour of who wrote it."""
    parts = [_text(12, 24, "Question", theme.muted, 13)]
    y = 44
    for line in textwrap.wrap(str(record["question"]), 84):
        parts.append(_text(12, y, line, theme.text, 15, 600))
        y += 20
    parts += [
        _box(12, y, 14, 14, theme.policy_back, theme.strong, 3),
        _text(34, y + 12, "written by the model: loss mask 1", theme.muted, 13),
        _box(290, y, 14, 14, theme.seen_back, theme.seen, 3),
        _text(312, y + 12, "put there by the search: loss mask 0", theme.muted, 13),
    ]
    y += 28
    for turn in record["turns"]:  # type: ignore[attr-defined]
        for text, ink, back in (
            (turn["text"], theme.policy, theme.policy_back),
            (turn["observation"], theme.seen, theme.seen_back),
        ):
            lines = [
                part for line in text.strip().splitlines() if line for part in textwrap.wrap(line, 81, break_on_hyphens=False)
            ]
            if not lines:
                continue
            height = 18 * len(lines) + 14
            parts.append(_box(12, y, WIDTH - 24, height, back, "none", 6))
            parts += [_text(24, y + 20 + 18 * i, line, ink, 13.5, font=MONO) for i, line in enumerate(lines)]
            y += height + 6
    return _svg(y + 6, f"A recorded trajectory that answers: {record['answer']}", parts)


def seeds(markdown: str) -> list[tuple[str, float, float, float]]:
    """Return seed and exact match before, after, and after without the evidence, from the table of docs/measured.md."""
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| \**([\d.]+)\** \| ([\d.]+) \|", markdown, re.MULTILINE)
    return [(seed, float(before), float(after), float(control)) for seed, before, after, control in rows]


def plot(theme: Theme, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Return bars of exact match, a group a seed."""
    top, bottom, left = 54, 250, 52
    colours = (theme.muted, theme.strong, "#b45309")
    labels = ("before training", "after", "after, evidence removed from the corpus")
    parts = []
    for x, colour, label in zip((left, 210, 310), colours, labels, strict=True):
        parts += [_box(x, 14, 13, 13, colour, "none", 3), _text(x + 20, 25, label, theme.muted, 13.5)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - tick * (bottom - top)
        parts.append(f'<line x1="{left}" x2="{WIDTH - 12}" y1="{y:g}" y2="{y:g}" stroke="{theme.line}" stroke-width="1"/>')
        parts.append(_text(left - 8, y + 4, f"{tick:g}", theme.muted, 12.5, anchor="end"))
    step = (WIDTH - 12 - left) / len(rows)
    for i, (seed, *values) in enumerate(rows):
        start = left + i * step + step / 2 - 87
        for j, (value, colour) in enumerate(zip(values, colours, strict=True)):
            height = value * (bottom - top)
            x = start + j * 60
            parts.append(_box(x, bottom - height, 54, height, colour, "none", 3))
            parts.append(_text(x + 27, bottom - height - 7, f"{value:.3f}", theme.text, 13.5, 600, "middle"))
        parts.append(_text(start + 87, bottom + 22, f"seed {seed}", theme.muted, 13.5, anchor="middle"))
    return _svg(284, "Exact match on 200 held-out questions, by seed", parts)


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img"'
    return "\n".join([f'{head} font-family="{escape(SANS)}">', f"<title>{escape(title)}</title>", *parts, "</svg>\n"])


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float = 8) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" stroke="{stroke}"/>'


def _text(
    x: float, y: float, text: str, fill: str, size: float, weight: int = 400, anchor: str = "start", font: str = ""
) -> str:
    family = f' font-family="{font}"' if font else ""
    style = f'x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}"{family}'
    return f'<text {style} xml:space="preserve">{escape(text)}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    tip = -9 if x2 > x1 else 9
    line = f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2 + tip / 2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="2"/>'
    return f'{line}<path d="M{x2:g} {y2:g} l{tip} -5 v10 z" fill="{colour}"/>'


if __name__ == "__main__":
    for name, text in drawings().items():
        write_text(ASSETS / name, text)
