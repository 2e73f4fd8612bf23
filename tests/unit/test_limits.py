"""Numbers of a configuration: none, texts, truth values and what is not finite are refused by name, in every section."""

from __future__ import annotations

import math

import pytest

from research_rl.errors import ConfigError
from research_rl.limits import check_number
from research_rl.retrieval import RetrievalSettings
from research_rl.training.memorisation import Memorisation
from research_rl.training.settings import Settings

SECTION = {"method": "research", "retrieval": {"url": "http://127.0.0.1:1"}}
WRONG = (True, "0.1", math.nan, math.inf, -1)


def test_the_section_of_these_tests_is_sound():
    assert Settings.from_mapping(SECTION).top_k == 5


@pytest.mark.parametrize("value", [*WRONG, None])
@pytest.mark.parametrize(
    "key", ["top_k", "coverage_sample", "max_tolerated_outage_s", "max_failed_query_share", "trajectory_share"]
)
def test_a_wrong_number_of_the_section_is_told_by_its_key(key, value):
    with pytest.raises(ConfigError, match=rf"research_rl\.{key} must be .*, got {value!r}"):
        Settings.from_mapping({**SECTION, key: value})


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["max_searches", "max_turn_tokens", "trained_rollouts", "stalled_after_s", "trajectory_max_gb"])
def test_a_limit_may_be_null_but_not_wrong(key, value):
    assert getattr(Settings.from_mapping({**SECTION, key: None}), key) is None
    with pytest.raises(ConfigError, match=rf"research_rl\.{key} must be"):
        Settings.from_mapping({**SECTION, key: value})


@pytest.mark.parametrize("value", [*WRONG, 0])
@pytest.mark.parametrize("key", ["deadline_s", "timeout_s", "max_attempts", "max_connections", "max_query_characters"])
def test_a_wrong_number_of_the_service_is_told_by_its_key(key, value):
    with pytest.raises(ConfigError, match=rf"retrieval\.{key} must be a positive"):
        RetrievalSettings("http://127.0.0.1:1", **{key: value})


@pytest.mark.parametrize("key", ["mu", "max_tokens", "temperature"])
@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_number_of_the_memorisation_is_told_by_its_key(key, value):
    with pytest.raises(ConfigError, match=rf"memorisation\.{key} must be"):
        Memorisation.from_mapping({key: value})


def test_bounds_belong_to_the_range_but_the_one_above_which_it_must_be():
    check_number("x", 1, "", low=1, high=1)
    with pytest.raises(ConfigError, match="x must be positive, got 0"):
        check_number("x", 0, "positive", above=0)
