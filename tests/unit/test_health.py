"""The figures of a run's health: what each says of a rollout, and what they say of a step together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.health import FAMILIES, FIGURES, RolloutHealth, repeated_share, rollout_health, step_health
from research_rl.methods import load_method
from research_rl.tools.mcp import McpTool
from research_rl.types import Answer, Invalid, Passage, Search, StopReason, ToolCall, ToolCalls, Trajectory, Turn

METHOD = load_method("research")
FOUND = "<result>\nOrla Venn\nOrla Venn was born in Tarn.\n</result>"


def trajectory(
    *turns: Turn, stop=StopReason.ANSWERED, mask=(1, 1, 0, 1), logprobs=(-1.0, -2.0, 0.0, -3.0), seconds=0.0
) -> Trajectory:
    return Trajectory("q", [], [5] * len(mask), list(mask), list(logprobs), turns, stop, True, 0.0, seconds)


def searched(query: str, shown: str = FOUND, passage: str = "p1") -> Turn:
    return Turn(f"<search>{query}</search>", Search(query), shown, (Passage(passage, ""),))


def answered(text: str) -> Turn:
    return Turn(f"<answer>\\boxed{{{text}}}</answer>", Answer(text))


def figures(*turns: Turn, golden=("Tarn",), info=None, **options) -> dict[str, float]:
    return dict(rollout_health(METHOD, trajectory(*turns, **options), golden, 1.0, "g", info).figures)


def test_a_query_that_is_sent_again_in_other_clothes_is_repeated():
    told = figures(searched("Where is Tarn?"), searched("where is the tarn"), searched("Orla"), answered("Tarn"))
    assert told["repeated_query_rate"] == pytest.approx(1 / 3)
    assert (told["search_rate"], told["searches"]) == (1.0, 3.0)
    assert "repeated_query_rate" not in figures(answered("Tarn"))


def test_what_shows_no_passage_is_told_but_for_tools_that_return_none():
    def called(*names: str, passages: tuple[Passage, ...] = ()) -> Turn:
        return Turn("", ToolCalls(tuple(ToolCall(name, {}) for name in names)), "Error: there is none", passages)

    empty = Turn("<search>a</search>", Search("a"), "<result>\n</result>", ())
    assert figures(searched("a"), empty, answered("x"))["nothing_shown"] == 0.5
    assert figures(called("search", passages=(Passage("p", ""),)), called("open"), called("open"))[
        "nothing_shown"
    ] == pytest.approx(2 / 3)
    assert figures(searched("a"), called("calculate"), called("search", "calculate"))["nothing_shown"] == 0.0
    assert "nothing_shown" not in figures(answered("x"))


def test_texts_of_a_servers_tools_are_not_taken_for_searches_that_showed_nothing():
    method, search = load_method("tool_calls"), Turn("", ToolCalls((ToolCall("search", {"query": "a"}),)), "1. Tarn (id: p)")
    done = trajectory(search, answered("x"))
    assert rollout_health(method, done, ["Tarn"], 1.0).figures["nothing_shown"] == 1.0
    method.tools = {"search": McpTool(None, "search", "", {})}  # pyright: ignore[reportArgumentType]
    told = rollout_health(method, done, ["Tarn"], 1.0).figures
    assert "nothing_shown" not in told
    assert (told["searches"], told["evidence_rate"]) == (1.0, 1.0)


def test_searches_are_counted_by_hops_where_the_data_tell_them_else_by_type():
    assert figures(answered("x"), info={"hops": 2, "type": "bridge"})["searches/hops_2"] == 0.0
    assert figures(searched("a"), info={"hops": 0, "type": "bridge"})["searches/bridge"] == 1.0
    assert not any(name.startswith("searches/") for name in figures(answered("x"), info={"hops": 0, "type": ""}))


def test_evidence_is_a_golden_answer_as_whole_words_in_what_was_shown():
    assert figures(searched("a"), answered("x"))["evidence_rate"] == 1.0
    assert figures(searched("a", "Tarnish"), answered("x"))["evidence_rate"] == 0.0
    assert "evidence_rate" not in figures(answered("x"))


def test_a_right_answer_that_nothing_shown_holds_is_without_evidence():
    assert figures(searched("a", "nothing"), answered("in Tarn"))["correct_without_evidence"] == 1.0
    assert figures(answered("Tarn"))["correct_without_evidence"] == 1.0
    assert figures(searched("a"), answered("Tarn"))["correct_without_evidence"] == 0.0
    assert "correct_without_evidence" not in figures(searched("a"), answered("elsewhere"))


def test_yes_and_no_have_no_evidence():
    told = figures(searched("a", "yes"), answered("yes"), golden=["yes"])
    assert "evidence_rate" not in told
    assert "correct_without_evidence" not in told


def test_supporting_passages_are_counted_where_the_data_name_them():
    turns = (searched("a", passage="p1"), searched("b", passage="p9"), answered("x"))
    assert figures(*turns, info={"supporting_ids": ["p1", "p2"]})["supporting_rate"] == 0.5
    assert "supporting_rate" not in figures(*turns, info={"supporting_ids": []})


def test_several_answers_in_one_are_seen_unless_the_golden_answer_has_as_many():
    assert figures(answered("Tarn or Venn"))["several_answers"] == 1.0
    assert figures(answered("Tarn; Venn; Orla"))["several_answers"] == 1.0
    assert figures(answered("Tarn\nVenn"))["several_answers"] == 1.0
    assert figures(answered("Oregon"))["several_answers"] == 0.0
    assert figures(answered("Trick or Treat"), golden=["Trick or Treat"])["several_answers"] == 0.0
    assert figures(answered("one two three"), golden=["Tarn", "in Tarn"])["answer_excess"] == 1.5


def test_tags_of_the_protocol_inside_an_answer_are_seen():
    assert figures(answered("<search> Tarn"))["tags_in_answer"] == 1.0
    assert figures(answered("search Tarn"))["tags_in_answer"] == 0.0


def test_tokens_are_told_by_the_mask():
    told = figures(answered("Tarn"))
    assert (told["written_tokens"], told["observed_tokens"], told["masked_share"]) == (3, 1, 0.25)
    assert "written_tokens" not in figures(answered("Tarn"), mask=(), logprobs=())


def test_stop_reasons_and_reasons_of_invalid_turns_are_shares_of_all_rollouts():
    bad = trajectory(Turn("x", Invalid("no \\boxed{} in an <answer> block")), stop=StopReason.NO_ACTION)
    good = trajectory(searched("a"), answered("Tarn"))
    told = step_health([rollout_health(METHOD, one, ["Tarn"], 0.0, "g") for one in (bad, good, good, good)])
    assert told["health/invalid/no_boxed_in_an_answer_block"] == told["health/invalid_rate"] == 0.25
    assert (told["health/stop/no_action"], told["health/stop/answered"], told["health/stop/max_tokens"]) == (0.25, 0.75, 0.0)


def test_a_repeated_text_is_told_by_its_four_grams():
    assert repeated_share("a b c d e f g") == 0.0
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("yes " * 100) == pytest.approx(96 / 97)
    assert repeated_share("too short") == 0.0


@given(st.text(alphabet="ab ", max_size=60))
def test_the_share_of_repeated_text_is_that_of_a_slow_count(text):
    words = text.split()
    seen, repeated = [], 0
    for start in range(len(words) - 3):
        repeated += words[start : start + 4] in seen
        seen.append(words[start : start + 4])
    assert repeated_share(text) == pytest.approx(repeated / len(seen) if seen else 0.0)


def member(group: str, score: float, logprob: float | None = None, seconds: float | None = None) -> RolloutHealth:
    return RolloutHealth(group, score, {}, seconds, logprob)


def test_a_group_teaches_nothing_if_all_its_rewards_are_equal():
    rows = [member("a", 1.0), member("b", 0.0), member("a", 1.0), member("b", 0.5), member("alone", 0.0)]
    assert step_health(rows)["health/uninformative_groups"] == 0.5


def test_the_log_probability_of_what_is_preferred_leaves_out_the_rest_of_a_group():
    rows = [member("a", 1.0, -0.5), member("a", 0.0, -9.0), member("b", 1.0, -7.0), member("b", 1.0, -7.0)]
    told = step_health(rows)
    assert told["health/preferred_logprob"] == -0.5
    assert told["health/entropy_estimate"] == pytest.approx((0.5 + 9 + 7 + 7) / 4)
    assert "health/entropy_estimate" not in step_health([member("a", 1.0)])


def test_log_probabilities_of_observations_do_not_count():
    assert rollout_health(METHOD, trajectory(answered("x")), ["y"], 0.0).logprob == -2.0


def test_search_seconds_are_per_search_and_told_by_their_percentiles():
    assert rollout_health(METHOD, trajectory(searched("a"), searched("b"), seconds=3.0), ["y"], 0.0).search_seconds == 1.5
    told = step_health([member("a", 0.0, seconds=number / 100) for number in range(101)])
    assert (told["health/search_seconds_p50"], told["health/search_seconds_p95"]) == (0.5, 0.95)


def test_every_figure_is_among_those_that_rules_may_name():
    bad = rollout_health(METHOD, trajectory(Turn("x", Invalid("")), stop=StopReason.NO_ACTION), ["Tarn"], 0.0, "g")
    good = rollout_health(
        METHOD, trajectory(searched("a"), answered("Tarn")), ["Tarn"], 1.0, "g", {"hops": 2, "supporting_ids": ["p1"]}
    )
    opens = Turn("", ToolCalls((ToolCall("open", {"id": "p"}),)), "Error: there is none")
    opening = rollout_health(load_method("tool_calls"), trajectory(opens, answered("x")), ["Tarn"], 0.0, "g")
    names = {name.removeprefix("health/") for name in step_health([bad, good, opening])}
    assert {name for name in names if not name.startswith(FAMILIES)} == set(FIGURES) - {"lost_groups", "alarms"}


def test_a_step_without_rollouts_has_no_figures():
    assert step_health([]) == {}
