"""Where a turn ends whose request was interrupted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

generation = pytest.importorskip("research_rl.verl_plugin.generation", reason="needs the extra train")
STOP = ("</search>", "</answer>")


def decode(ids):
    return "".join(ids)


@given(st.lists(st.sampled_from(["</", "search", ">", "</search>", "</answer>", "x", "</search>x", " "]), max_size=12))
def test_it_ends_with_the_id_that_completes_the_first_stop_string(ids):
    end = generation.up_to_stop(ids, decode, STOP)
    by_hand = [n for n in range(1, len(ids) + 1) if any(stop in decode(ids[:n]) for stop in STOP)]
    assert end == (by_hand[0] if by_hand else len(ids))


def test_a_long_turn_without_a_stop_string_is_decoded_once():
    calls = []

    def counted(ids):
        calls.append(len(ids))
        return decode(ids)

    assert generation.up_to_stop(["x"] * 1000, counted, STOP) == 1000
    assert calls == [1000]


def test_the_oldest_and_the_newest_weights_of_a_trajectory_are_kept():
    extra = {}
    generation.merge_steps(extra, {"min_global_steps": 3, "max_global_steps": 3})
    generation.merge_steps(extra, {"min_global_steps": 3, "max_global_steps": 4})
    generation.merge_steps(extra, {"min_global_steps": None})
    assert extra == {"min_global_steps": 3, "max_global_steps": 4}
