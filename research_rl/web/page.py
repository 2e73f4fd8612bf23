"""What all HTML pages share: the environment of their templates, and plots as inline SVG."""

from __future__ import annotations

import io
import ipaddress
import re
from pathlib import Path
from typing import Any

from research_rl.errors import missing_extra

TEMPLATES = Path(__file__).parent / "templates"
# characters that move, hide or reorder what stands around them: controls but for tab and line feed, and those of bidirectional text
HIDDEN = r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"


def render(template: str, **values: Any) -> str:
    """Return a page; a value that the template needs and does not get is an error.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_extra("jinja2", "eval") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    return environment.get_template(template).render(**values)


def visible(text: object) -> str:
    """Return a text in which `HIDDEN` characters are named, so that it reads as it is written."""
    return re.sub(HIDDEN, lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", str(text))


def own_hosts(host: str) -> list[str] | None:
    """Return the names by which a page that listens on `host` may be asked for, against DNS rebinding; None (any) beyond this machine."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return ["127.0.0.1", "localhost", "::1", "[::1]", host] if local else None


def subplots(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure with `columns` axes side by side; sizes in inches. `svg` closes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "eval") from error
    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "research-rl"  # the same data give the same file
    figure, axes = plt.subplots(1, columns, figsize=(width, height), constrained_layout=True, squeeze=False)
    return figure, list(axes[0])


def svg(figure: Any) -> str:
    """Return a figure as an SVG element for a page, and close it."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
