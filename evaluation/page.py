"""What the HTML pages share: their templates' environment, and plots as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research_rl.errors import missing_extra

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return a page; a value that the template names and does not get is an error.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_extra("jinja2", "eval") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)


@contextmanager
def plot(columns: int, width: float, height: float) -> Iterator[tuple[list[Any], io.StringIO]]:
    """Yield axes side by side, and a buffer that holds the SVG element when the block has ended; sizes in inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "eval") from error
    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "research-rl"  # the same figures give the same file
    figure, axes = plt.subplots(1, columns, figsize=(width, height), constrained_layout=True, squeeze=False)
    text, element = io.StringIO(), io.StringIO()
    yield list(axes[0]), element
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    element.write(text.getvalue()[text.getvalue().index("<svg") :])
