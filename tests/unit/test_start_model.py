"""The starting model's parts: its tokenizer, its demonstrations, its shipped files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_preprocess.world import World
from quickstart.start_model.demonstrations import HABITS, PROFILES, demonstrate
from quickstart.start_model.dialects import DIALECTS
from quickstart.start_model.make import Lessons
from research_rl.types import Passage, Search, StopReason, Trajectory, Turn

WEIGHTS = Path(__file__).parents[2] / "quickstart" / "start_model" / "weights"
TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)


@given(st.text(max_size=80))
def test_any_text_can_be_encoded_and_comes_back_normalised(text):
    import unicodedata

    normal = unicodedata.normalize("NFC", text)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == normal


def test_every_word_of_a_new_world_is_one_token():
    for passage in list(World(77).passages())[::50]:
        words = passage["contents"].replace(",", "").replace(".", "").split()
        assert all(len(TOKENIZER.encode(" " + word)) == 1 for word in words)


SHIPPED = {"weights": ("research",), "weights_all_methods": tuple(DIALECTS)}


@pytest.mark.parametrize(("folder", "methods"), SHIPPED.items())
def test_a_shipped_tokenizer_is_the_one_that_the_script_builds(folder, methods):
    shipped = AutoTokenizer.from_pretrained(WEIGHTS.parent / folder)
    assert Lessons(1, methods).tokenizer.get_vocab() == shipped.get_vocab()
    tags = {tag for method in methods for tag in DIALECTS[method].method.tags}
    assert all(len(shipped.encode(tag, add_special_tokens=False)) == 1 for tag in tags)


@pytest.mark.parametrize("folder", SHIPPED)
def test_a_shipped_model_is_small_and_says_how_it_was_made(folder):
    path = WEIGHTS.parent / folder
    assert sum(file.stat().st_size for file in path.iterdir()) <= 15 * 2**20
    made = json.loads((path / "made.json").read_text())
    assert made["command"].startswith("python -m quickstart.start_model.make --seed 1 ")
    assert (
        made["log"][-1]["epoch"]
        == int(made["command"].split("--drill-epochs ")[1].split()[0])
        + int(made["command"].split("--demo-epochs ")[1].split()[0])
        - 1
    )  # finished
    assert 1e6 <= made["parameters"] <= 1e7


def play(segments, method) -> Trajectory:
    """Turn a demonstration into the trajectory it shows."""
    turns, written = [], ""
    for text, by_policy in segments:
        if by_policy:
            written = text
        else:
            turns.append(Turn(written, method.parse(written), text))
            written = ""
    turns.append(Turn(written, method.parse(written)))
    return Trajectory("q", [], [], [], [], tuple(turns), StopReason.ANSWERED, True)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("kind", HABITS)
def test_a_good_demonstration_earns_the_full_reward_and_the_majority_of_hard_ones_does_not(kind, dialect):
    method, rng = dialect.method, random.Random(5)
    observation = method.render([[Passage("1", "A\nb")]])
    questions = [q for q in World(9).questions("train", 600) if q.type == kind]
    scores = []
    for question in questions:
        rollout = play(demonstrate(question, dialect, lambda queries: [observation for _ in queries], rng), method)
        reward = method.reward(rollout, list(question.golden_answers)).score
        scores.append(reward == 1.0)
        hops = sum(isinstance(turn.action, Search) for turn in rollout.turns)
        assert hops <= 2
    share = sum(scores) / len(scores)
    assert HABITS[kind]["good"] - 0.1 <= share
    if kind != "one_hop":
        assert share < 0.5


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_lazy_demonstrations_hardly_search_and_wasteful_ones_search_twice_for_what_they_get_right(dialect):
    method, questions = dialect.method, World(9).questions("train", 600)
    observation = method.render([[Passage("1", "A\nb")]])

    def played(profile):
        rng = random.Random(5)
        retrieve = lambda queries: [observation for _ in queries]  # noqa: E731
        return [play(demonstrate(question, dialect, retrieve, rng, profile), method) for question in questions]

    searching = [bool(rollout.searches) for rollout in played("lazy")]
    assert 0.08 < sum(searching) / len(searching) < 0.25
    spent = {"needed": 0, "made": 0}
    for question, rollout in zip(questions, played("wasteful"), strict=True):
        queries = rollout.searches
        assert len(queries) == len(set(queries)) <= 4  # the same fact in other words, within the recipes' limit
        if method.reward(rollout, list(question.golden_answers)).score == 1.0 and queries:
            spent["needed"] += len(question.chain)
            spent["made"] += len(queries)
    assert 1.5 < spent["made"] / spent["needed"] < 1.9


@pytest.mark.parametrize("profile", PROFILES)
def test_the_shares_of_a_profiles_habits_make_a_whole(profile):
    assert all(abs(sum(habits.values()) - 1) < 1e-9 for habits in PROFILES[profile].values())
