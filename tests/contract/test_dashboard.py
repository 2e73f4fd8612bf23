"""The dashboard of docker/grafana asks for metrics that exist, and for labels that they have."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from prometheus_client.registry import REGISTRY

from rag_serving import metrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "docker" / "grafana" / "dashboard.json").read_text())
ASKED = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def served() -> dict[str, set[str]]:
    """Return the service's metrics as Prometheus names them, and their labels."""
    metrics.exposition()
    found = {}
    for name, collector in REGISTRY._names_to_collectors.items():
        if name.startswith("rag_"):
            found[name] = set(collector._labelnames)
    return found


@pytest.mark.parametrize("expression", [one for one in ASKED if "rag_" in one])
def test_a_panel_of_the_service_asks_for_its_metrics_and_their_labels(expression):
    known, names = served(), set(re.findall(r"\brag_\w+", expression))
    assert names <= known.keys()
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    filtered = set(re.findall(r"(\w+)[!=]~?\"", expression))
    for name in names:
        assert grouped | filtered <= known[name] | {"le"}


def test_a_panel_of_the_engine_asks_for_metrics_of_vllm():
    pytest.importorskip("vllm")
    spec = importlib.util.find_spec("vllm.v1.metrics.loggers")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    names = {name for one in ASKED for name in re.findall(r"vllm:\w+", one)}
    assert len(names) == 5
    for name in names:  # a counter's name gets its _total from the library
        assert f'"{name.removesuffix("_total")}"' in source, name


def test_no_two_panels_lie_on_one_another():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y) for one in places for x in range(one["x"], one["x"] + one["w"]) for y in range(one["y"], one["y"] + one["h"])
    ]
    assert len(cells) == len(set(cells))
