"""The doctor's table of versions: what fits is what the packages themselves ask for."""

from __future__ import annotations

import importlib.metadata

import pytest

from research_rl.verl_plugin.doctor import environment
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.versions import KNOWN, known, table

CPU, GPU, SGLANG = KNOWN.values()
REST = {"tensordict": "0.10.0", "ray": "2.60.0"}


def installed(versions):
    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    return version


def asked(package):
    """What verl says itself, and what vLLM 0.24.0 and SGLang 0.5.12 do (which are not installed here)."""
    others = {"vllm": ["torch==2.11.0"], "sglang": ["torch==2.11.0", "transformers==5.6.0"]}
    return others.get(package) or importlib.metadata.requires(package)


def unmet(versions):
    return {row.package: row.unmet for row in table(installed(versions), asked) if row.unmet}


def told():
    return [(finding.level, str(finding)) for finding in environment.versions.findings(Setup(None))]


def test_the_set_installed_here_fits_and_is_known():
    assert not [row for row in table() if row.unmet]
    assert known().startswith("tested here")
    ((level, text),) = told()
    assert level == "ok"
    assert "a known set (tested here" in text


def test_the_known_sets_fit_by_verls_own_requirements():
    assert not unmet(GPU | REST)
    assert known(installed(GPU)).endswith("not run here")
    assert not unmet(CPU | REST | {"torch": "2.13.0+cpu"})
    assert not unmet(SGLANG | REST)  # but for SGLang's pin, which is the version that verl excludes
    assert unmet(SGLANG | REST | {"transformers": "5.6.0"}) == {"transformers": ("verl: !=5.6.0,<5.11,>=5.5.3",)}


@pytest.mark.parametrize(
    ("change", "package", "told"),
    [
        ({"transformers": "4.57.0"}, "transformers", "verl: !=5.6.0,<5.11,>=5.5.3"),
        ({"transformers": "5.6.0"}, "transformers", "verl: !=5.6.0,<5.11,>=5.5.3"),
        ({"TransferQueue": "0.1.9"}, "TransferQueue", "verl: >=0.1.10"),
        ({"torch": "2.13.0"}, "torch", "vllm: ==2.11.0"),
    ],
)
def test_a_version_that_does_not_fit_is_told_with_who_asks_for_another(change, package, told):
    assert unmet(GPU | REST | change) == {package: (told,)}


def test_a_missing_package_is_told_and_an_unknown_set_is_no_failure(monkeypatch):
    assert unmet({name: version for name, version in (GPU | REST).items() if name != "vllm"}) == {"vllm": ("not installed",)}
    other = GPU | REST | {"ray": "2.55.0", "transformers": "5.10.0"}
    assert not unmet(other)
    assert known(installed(other)) == ""
    monkeypatch.setattr(environment, "table", lambda: table(installed(GPU | REST | {"torch": "2.13.0"}), asked))
    ((level, text),) = told()
    assert level == "error"
    assert text.startswith("torch must meet what other packages require: vllm: ==2.11.0; got 2.13.0. Install")


def test_the_gpu_extra_is_verls_own():
    import tomllib
    from pathlib import Path

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "verl[vllm]==0.9.1" in extras["gpu"]
    stated = importlib.metadata.requires("verl") or []
    for package in ("vllm", "torch", "transformers"):
        assert f'{package}=={GPU[package]}; extra == "vllm"' in stated
