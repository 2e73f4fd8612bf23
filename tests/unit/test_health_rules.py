"""Rules on a run's figures: what they may be, when they raise an alarm, and that a healthy run is left in peace."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.collapse import half_lost
from research_rl.errors import ConfigError
from research_rl.training.health import Alarm, Health, Rule, Watch

DEFAULTS = yaml.safe_load((Path(__file__).parents[2] / "research_rl" / "config" / "health.yaml").read_text(encoding="utf-8"))


def recorded(name: str) -> list[dict[str, Any]]:
    """Return the figures of a run's steps."""
    return [json.loads(line) for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()]


# 30 steps of ReSearch on a 135M model, 8 questions x 8 rollouts a step, as small and noisy as runs get
HEALTHY = recorded("healthy_run.jsonl")
# 30 steps of R1-Searcher++ without its memorisation, whose entropy is low, and nearly doubles for three steps
CERTAIN = recorded("healthy_run_certain.jsonl")
# 18 steps of it with the memorisation, a term of the loss that the model did not bear
COLLAPSED = recorded("collapsed_run.jsonl")
# 20 steps of the quickstart, two updates per batch, a learning rate that rises to 30 times its own: a seed on which no rule was chosen
TORN = recorded("collapsed_run_two_updates.jsonl")
METRIC = "health/search_rate"


def rule(**keys) -> Rule:
    return Rule.from_mapping("mine", {"metric": METRIC, **keys})


def alarms(rules, values, start: int = 1) -> list[Alarm]:
    """Tell a watch one value of one metric after the other."""
    watch = Watch(rules)
    return [alarm for step, value in enumerate(values, start) for alarm in watch.see(step, {METRIC: value})]


def steps(rules, values) -> list[int]:
    return [alarm.step for alarm in alarms(rules, values)]


def test_a_threshold_counts_for_the_mean_of_a_full_window():
    assert steps([rule(below=0.5, window=3)], [0.0, 0.0]) == []
    assert steps([rule(below=0.5, window=3)], [1.0, 0.4, 0.0, 0.9, 0.0]) == [3]
    assert steps([rule(above=0.5)], [0.5, 0.6]) == [2]


def test_a_fall_is_measured_by_the_best_mean_before():
    values = [0.5, 0.8, 0.6, 0.55]
    (alarm,) = alarms([rule(falls_by=0.3)], values)
    assert (alarm.step, alarm.value, alarm.threshold) == (4, 0.55, pytest.approx(0.56))
    assert steps([rule(rises_by=1.0)], [2.0, 1.0, 1.9, 2.1]) == [4]
    assert steps([rule(falls_by=1.0)], [-1.0, -0.2, -0.39, -0.41]) == [4]  # log-probabilities: twice as far from zero


def test_grace_steps_raise_no_alarm_but_count_as_the_best():
    assert steps([rule(below=0.5, after=3)], [0.0, 0.0, 0.0, 0.0]) == [4]
    assert steps([rule(falls_by=0.5, after=3)], [1.0, 1.0, 1.0, 0.4]) == [4]


def test_a_rule_may_ask_for_steps_in_a_row_and_tells_since_when():
    (alarm,) = alarms([rule(**{"below": 0.5, "for": 3})], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert (alarm.step, alarm.since) == (6, 4)


def test_a_rule_that_counts_after_a_height_was_reached_leaves_alone_what_never_reached_it():
    assert steps([rule(below=0.1, once_above=0.5)], [0.0, 0.05, 0.4, 0.0]) == []
    assert steps([rule(below=0.1, once_above=0.5)], [0.0, 0.6, 0.0]) == [3]


def test_an_alarm_is_raised_once_and_again_only_when_it_was_over_for_a_window():
    assert steps([rule(below=0.5, window=1)], [0.0, 0.0, 1.0, 0.0]) == [1, 4]
    watch = Watch([rule(below=0.5, window=2)])
    found = []
    for step, value in enumerate([0.0, 0.0, 0.4, 1.0, 0.0, 0.0], 1):  # means 0, 0.2, 0.7, 0.5, 0
        found += [alarm.step for alarm in watch.see(step, {METRIC: value})]
        assert bool(watch.standing) == (step in (2, 3, 4, 6))
    assert found == [2, 6]


def test_what_is_no_number_raises_an_alarm_wherever_it_stands_and_disturbs_no_mean():
    (alarm,) = alarms([rule(metric="*", not_finite=True, action="halt"), rule(below=0.5, window=2)], [0.6, math.nan, 0.6])
    assert (alarm.step, alarm.metric, alarm.action) == (2, METRIC, "halt")
    assert json.loads(json.dumps(alarm.to_json(), allow_nan=False))["value"] == "nan"
    assert alarms([rule(metric="actor/*", not_finite=True)], [math.nan]) == []


def test_an_alarm_says_what_was_got_since_when_and_what_to_do():
    (alarm,) = alarms([rule(falls_by=0.3, action="save", advice="Look.")], [0.9, 0.9, 0.3])
    assert alarm.message == (
        "health rule mine at step 3: health/search_rate is 0.3 (less than 0.63, its best was 0.9), since step 3; "
        "a checkpoint is written. Look."
    )
    assert {"step", "rule", "metric", "value", "threshold", "action", "message"} <= set(alarm.to_json())


VALUES = st.lists(st.floats(0, 1, width=16), max_size=25)
RULES = st.fixed_dictionaries(
    {"window": st.integers(1, 4), "after": st.integers(0, 5), "for": st.integers(1, 3)},
    optional={"once_above": st.floats(0, 1, width=16)},
)
KINDS = st.sampled_from(["below", "above", "falls_by", "rises_by"])


@given(VALUES, RULES, KINDS, st.floats(0.1, 0.9))
def test_the_first_alarm_is_where_a_slow_reading_of_the_rule_has_it(values, keys, kind, limit):
    means, held, expected = [], 0, None
    for step in range(1, len(values) + 1):
        window = values[max(0, step - keys["window"]) : step]
        if len(window) < keys["window"]:
            continue
        mean = math.fsum(window) / len(window)
        holds = {
            "below": mean < limit,
            "above": mean > limit,
            "falls_by": bool(means) and mean < max(means, default=0) - abs(max(means, default=0)) * limit,
            "rises_by": bool(means) and mean > min(means, default=0) + abs(min(means, default=0)) * limit,
        }[kind]
        if "once_above" in keys and not any(before > keys["once_above"] for before in means):
            holds = False
        means.append(mean)
        held = held + 1 if holds else 0
        if held >= keys["for"] and step > keys["after"]:
            expected = step
            break
    found = steps([rule(**keys, **{kind: limit})], values)
    assert (found[0] if found else None) == expected


@given(VALUES, RULES, KINDS, st.data())
def test_a_watch_that_is_told_the_steps_before_an_interruption_goes_on_as_if_there_had_been_none(values, keys, kind, data):
    mine = rule(**keys, **{kind: 0.4})
    cut = data.draw(st.integers(0, len(values)))
    whole = Watch([mine])
    expected = [whole.see(step, {METRIC: value}) for step, value in enumerate(values, 1)]
    resumed = Watch([mine])
    for step, value in enumerate(values[:cut], 1):
        resumed.see(step, resumed.watched({METRIC: value, "actor/other": 1.0}))
    assert [resumed.see(step, {METRIC: value}) for step, value in enumerate(values[cut:], cut + 1)] == expected[cut:]


@pytest.mark.parametrize("window", [3, None])
def test_the_default_rules_leave_a_healthy_small_and_noisy_run_in_peace(window):
    rules = Health.from_mapping(DEFAULTS).rules
    watch = Watch([dataclasses.replace(one, window=window or one.window) for one in rules])
    assert [alarm.message for row in HEALTHY for alarm in watch.see(row["step"], row["metrics"])] == []


def test_the_default_rules_leave_a_run_in_peace_that_is_nearly_certain_and_wavers():
    watch = Watch(Health.from_mapping(DEFAULTS).rules)
    assert [alarm.message for row in CERTAIN for alarm in watch.see(row["step"], row["metrics"])] == []


def told_of(rows) -> list[tuple[str, int]]:
    """Return the rules that raise an alarm, and when."""
    watch = Watch(Health.from_mapping(DEFAULTS).rules)
    return [(alarm.rule, alarm.step) for row in rows for alarm in watch.see(row["step"], row["metrics"])]


def test_a_collapse_that_nobody_provoked_is_told_five_steps_before_em_has_lost_half_of_its_best():
    assert told_of(COLLAPSED)[:3] == [("confusion", 12), ("fewer_searches", 14), ("format", 16)]
    assert half_lost([row["em"] for row in COLLAPSED]) == 17


def test_a_collapse_by_updates_that_are_too_large_is_told_six_steps_before():
    assert told_of(TORN)[:3] == [("policy_shift", 8), ("gradient", 12), ("confusion", 12)]
    assert half_lost([row["em"] for row in TORN]) == 14


COLLAPSES = {  # what a metric moves to, evenly in 20 steps
    "format": ("health/well_formed_rate", 0.98, 0.4), "fewer_searches": ("health/search_rate", 1.0, 0.6),
    "nothing_found": ("health/nothing_shown", 0.02, 0.6),
    "nothing_to_learn": ("health/uninformative_groups", 0.4, 1.0), "repetition": ("health/repeated_text", 0.04, 0.8),
    "too_long": ("health/stop/max_tokens", 0.02, 1.0), "certainty": ("health/entropy_estimate", 0.4, 0.001),
    "confusion": ("health/entropy_estimate", 0.1, 1.0), "likelihood": ("health/preferred_logprob", -0.4, -4.0),
    "stuffed_answers": ("health/several_answers", 0.01, 0.9),
    "long_answers": ("health/answer_excess", 1.2, 12.0), "tags": ("health/tags_in_answer", 0.0, 0.9),
    "from_memory": ("health/correct_without_evidence", 0.1, 1.0), "engine_gap": ("training/rollout_probs_diff_mean", 0.002, 0.3),
    "policy_shift": ("actor/ppo_kl", 0.0005, 0.1),
    "gradient": ("actor/grad_norm", 0.1, 1.0), "not_a_number": ("actor/grad_norm", 0.1, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in DEFAULTS["rules"] if name != "broken"])
def test_each_default_rule_sees_the_collapse_that_it_is_for_and_no_other_does(name):
    metric, healthy, collapsed = COLLAPSES[name]
    watch = Watch(Health.from_mapping(DEFAULTS).rules)
    found = []
    for step in range(1, 61):
        part = min(1.0, max(0.0, (step - 20) / 20))
        value = healthy if not part else healthy + part * (collapsed - healthy)
        found += watch.see(step, {**HEALTHY[step % 30]["metrics"], metric: value})
    assert [alarm.rule for alarm in found] == [name]
    assert 20 < found[0].step <= 50


def test_a_policy_that_one_update_has_broken_is_seen_at_once_and_the_run_ended_three_steps_later():
    watch = Watch(Health.from_mapping(DEFAULTS).rules)
    found = []
    for step in range(1, 31):
        found += watch.see(step, {**HEALTHY[step % 30]["metrics"], **({"health/well_formed_rate": 0.03} if step > 7 else {})})
    assert [(one.rule, one.step, one.since, one.action) for one in found[:2]] == [
        ("format", 9, 9, "warn"),
        ("broken", 10, 8, "halt"),
    ]


def test_the_default_rules_only_warn_but_for_what_is_no_number_and_a_broken_policy():
    actions = {one.name: one.action for one in Health.from_mapping(DEFAULTS).rules}
    assert {name for name, action in actions.items() if action == "halt"} == {"not_a_number", "broken"}
    assert set(actions.values()) == {"warn", "halt"}


@pytest.mark.parametrize(("keys", "told"), [
    ({"metric": "loss", "below": 1}, r"metric='loss' is not a metric of a step; valid: names that begin with health/, "),
    ({"metric": "health/search_rat", "below": 1}, r"'health/search_rat' is unknown; valid: health/search_rate, "),
    ({"below": 1, "action": "stop"}, r"rules\.mine\.action='stop' is unknown; valid: warn, save, halt, rollback"),
    ({}, r"expected one of below, above, falls_by, rises_by, not_finite, got none"),
    ({"not_finite": True, "action": "save"}, r"no checkpoint is written of a policy with NaN; valid with not_finite: warn, halt, rollback"),
    ({"below": 1, "above": 2}, r"got below, above"),
    ({"below": "1"}, r"mine\.below must be a number, got '1'"),
    ({"falls_by": 0}, r"must be a share of the best mean"),
    ({"below": 1, "window": 0}, r"mine\.window must be a number of steps, at least 1, got 0"),
    ({"below": 1, "after": -1}, r"mine\.after must be a number of steps, at least 0"),
    ({"below": 1, "limit": 3}, r"unknown keys \['limit'\]; valid: metric, below"),
])  # fmt: skip
def test_a_wrong_rule_is_told_with_what_is_valid(keys, told):
    with pytest.raises(ConfigError, match=told):
        rule(**keys)


@pytest.mark.parametrize(("section", "told"), [
    ({"rule": {}}, "unknown keys"), ({"rules": {"mine": 3}}, "expected a mapping, got 3"),
    ({"rollback": {"factor": 1}}, "valid: lr_factor, times"), ({"rollback": {"lr_factor": 2}}, "at most 1, got 2"),
    ({"rollback": {"times": -1}}, "0 or more"),
])  # fmt: skip
def test_a_wrong_section_is_told(section, told):
    with pytest.raises(ConfigError, match=told):
        Health.from_mapping(section)


def test_a_rule_that_is_null_is_switched_off():
    assert Health.from_mapping({"rules": {"a": None, "b": {"metric": METRIC, "below": 0}}}).rules[0].name == "b"
    assert Health.from_mapping({}).rules == ()
