"""The arithmetic of docs/howto/scale.md: what grows with what, and that the page shows what the script says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.tools import scale

SIZE = scale.Size()


def loads(size):
    return {row.part: row.load for row in scale.reckon(size) if row.load is not None}


def amounts(size):
    return {row.part: row.amount for row in scale.reckon(size)}


def test_the_page_has_the_table_that_holds_now():
    text = scale.PAGE.read_text(encoding="utf-8")
    assert scale.page(text) == text, "run python -m docs.tools.scale --write"
    assert len(text.splitlines()) <= 120


def test_the_constants_give_back_what_was_measured():
    for tokens, measured in ((382.8, 2251), (414.4, 2362)):
        assert scale.TRAJECTORY_FIXED + scale.TRAJECTORY_TOKEN * tokens == pytest.approx(measured, rel=0.02)
    checkpoint = scale.CHECKPOINT * 134_515_008
    assert checkpoint == pytest.approx(2_156_270_840, rel=0.01)
    assert scale.QUERIES_CORE * 2 == 532


def test_the_bottlenecks_stand_in_the_order_that_the_page_tells():
    order = sorted(loads(SIZE), key=loads(SIZE).__getitem__, reverse=True)
    assert [part.split(",")[0] for part in order] == ["GPUs", "driver", "trajectories"]


def test_figures_by_hand():
    size = replace(SIZE, gpus=10, rollouts=86_400.0, tokens=1_000, searches=2.0, parameters=1e9, batch=100, generating=0.5)
    found = amounts(size)
    assert found["a step"] == "100.0 s, 864 a day"
    assert found["searches"].startswith("4 a second")
    assert found["driver, bytes a step"].startswith("0.0 GB")
    assert found["trajectories, plain"] == "4,980 bytes each, 0.00 TB a day"
    assert found["checkpoints"].startswith("16 GB each")
    assert loads(size)["GPUs"] == pytest.approx(1_000 * 12 * 1e9 / (989e12 * 0.35) / 10)


@given(factor=st.integers(2, 50))
def test_more_gpus_relieve_the_gpus_only_and_more_rollouts_load_everything(factor):
    before, more = loads(SIZE), loads(replace(SIZE, gpus=SIZE.gpus * factor))
    assert more.pop("GPUs") == pytest.approx(before["GPUs"] / factor)
    assert more.items() <= before.items()
    assert loads(replace(SIZE, rollouts=SIZE.rollouts * factor)) == pytest.approx(
        {part: load * factor for part, load in before.items()}
    )


@given(batch=st.integers(1, 10**6))
def test_the_drivers_bytes_a_second_do_not_depend_on_the_batch(batch):
    assert loads(replace(SIZE, batch=batch)) == pytest.approx(loads(SIZE))


def test_the_command_prints_the_table_for_another_size(capsys):
    scale.main(["--gpus", "64"])
    assert "of 64 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"), [("--gpus", "0"), ("--rollouts", "-1"), ("--rollouts", "nan"), ("--generating", "2")]
)
def test_a_size_that_cannot_be_is_refused_with_its_option(capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        scale.main([option, value])
    assert ended.value.code == 2
    assert f"{option} must be above 0" in capsys.readouterr().err
