"""The quickstart goes on with a run of an earlier version, and refuses one with other settings."""

from __future__ import annotations

import contextlib
import json

import pytest

from quickstart.__main__ import main, make_parser, settings_of

DEFAULTS = settings_of(make_parser().parse_intermixed_args([]))


@pytest.fixture(autouse=True)
def others_live_on(monkeypatch):
    """A main program ends every descendant of its process: here also the one that tests/forked.py forks from."""
    monkeypatch.setattr("quickstart.main_program.leaving_none", contextlib.nullcontext)


def finished(folder, settings):
    """Write what a run that is done has: with it, nothing is started."""
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "summary.json").write_text("{}")
    return ["--run-dir", str(folder)]


@pytest.mark.parametrize("unknown", DEFAULTS)
def test_a_setting_that_an_earlier_version_did_not_know_counts_as_its_default(unknown, tmp_path, capsys):
    given = finished(tmp_path, {name: value for name, value in DEFAULTS.items() if name != unknown})
    assert main(given) == 0
    assert "Done already" in capsys.readouterr().out


def test_another_setting_is_refused(tmp_path, capsys):
    given = finished(tmp_path, {name: value for name, value in DEFAULTS.items() if name != "seed"})
    assert main([*given, "--seed", "2"]) == 1
    assert "seed was 1, now 2" in " ".join(capsys.readouterr().out.split())
