"""The lock files, the Makefile, the workflow and docs/versions.md name the same versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from docs.tools import versions
from research_rl.verl_plugin.doctor.versions import KNOWN, pythons

ROOT = Path(__file__).parents[2]
LOCKED = ("cpu", "dev", "serve", "torch-cpu", "vllm-cpu")


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(re.split(r" #| --hash", line)[0]) for line in lines if line and not line.startswith("#")]


def pinned(name: str, python: str = "3.11") -> dict[str, str]:
    here = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found = [wanted for wanted in requirements(name) if not wanted.marker or wanted.marker.evaluate(here)]
    return {wanted.name.lower().replace("_", "-"): str(wanted.specifier).removeprefix("==") for wanted in found}


def test_the_page_has_the_table_that_holds_now():
    text = versions.PAGE.read_text(encoding="utf-8")
    assert versions.page(text) == text, "run python -m docs.tools.versions"
    assert all(version in text for version in ("vllm-cpu 0.28.0", "3.11, 3.12"))


def test_the_makefile_and_the_workflow_have_the_versions_of_python_that_verl_allows():
    wanted = [version for version in pythons() if version != "3.10"]
    (made,) = re.findall(r"^PYTHONS = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text(encoding="utf-8"))
    assert made.split() == wanted
    assert workflow["jobs"]["contract"]["strategy"]["matrix"]["python"] == wanted


def test_the_locks_hold_the_set_that_is_known_as_tested():
    locked = pinned("cpu") | pinned("torch-cpu") | pinned("vllm-cpu")
    known = next(iter(KNOWN.values()))
    assert {name: locked[name.lower()].partition("+")[0] for name in known} == known


def test_what_stands_in_two_files_is_the_same_in_both():
    assert pinned("torch-cpu")["torch"].partition("+")[0] == pinned("overrides")["torch"]
    assert f"vllm-cpu=={pinned('vllm-cpu')['vllm-cpu']} " in (ROOT / "requirements" / "cpu.in").read_text(encoding="utf-8")
    whole = pinned("cpu")
    assert not {name for name, version in pinned("serve").items() if whole.get(name) != version}
    assert not pinned("dev").keys() & whole.keys()


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_pins_each_package_and_names_no_index_or_path(name):
    assert all(re.fullmatch(r"==[^,*]+", str(wanted.specifier)) for wanted in requirements(name))
    assert "/" not in "".join(str(wanted) for wanted in requirements(name))
    assert not re.search(
        r"--(extra-)?index|--find-links|://", (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    )
