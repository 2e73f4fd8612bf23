"""A run that ends because a checkpoint had no room says so."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from research_rl.verl_plugin.full_disk import full_disk

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "global_step_4").mkdir()
    (tmp_path / "global_step_4" / "model.pt").write_bytes(bytes(3 * 2**20))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    return tmp_path


def raised(text, where="_save_checkpoint"):
    """Return an error as it comes from a function of that name."""

    def fail():
        raise RuntimeError(text)

    fail.__code__ = fail.__code__.replace(co_name=where)
    try:
        fail()
    except RuntimeError as error:
        return error
    raise AssertionError


def free(monkeypatch, mebibytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, int(mebibytes * 2**20)))


def test_what_torch_says_of_a_full_disk_is_said_plainly(monkeypatch, checkpoints):
    free(monkeypatch, 1)
    told = full_disk(checkpoints, raised("PytorchStreamWriter failed writing file data/1: file write failed"))
    assert told is not None
    assert f"the disk of {checkpoints} has 1 MiB left, and one takes 3 MiB. That of step 4 is whole." in told


def test_the_systems_own_words_count_whatever_is_free_by_now(monkeypatch, checkpoints):
    free(monkeypatch, 9_000)
    assert full_disk(checkpoints, raised("[Errno 28] No space left on device")) is not None


def test_without_a_checkpoint_before_none_is_promised(monkeypatch, tmp_path):
    free(monkeypatch, 1)
    told = full_disk(tmp_path, raised("file write failed"))
    assert told is not None
    assert "None has been written before." in told


@pytest.mark.parametrize(
    ("mebibytes", "where"), [(9_000, "_save_checkpoint"), (1, "_update_actor")], ids=["there is room", "elsewhere"]
)
def test_another_error_stays_what_it_is(monkeypatch, checkpoints, mebibytes, where):
    free(monkeypatch, mebibytes)
    assert full_disk(checkpoints, raised("file write failed", where)) is None
