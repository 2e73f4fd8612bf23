r"""Imperfect demonstrations: the behaviour of a base model that has seen some searching, but was never rewarded for it.

On easy questions most demonstrations search and answer well. On two-hop questions most stop after the first search, and on comparisons
most guess without searching or forget the box; only a minority does everything right. Imitation learns the habits of the majority, and
gives the skill of the minority a small probability, which reinforcement learning can raise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from data_preprocess.world import WorldQuestion
from data_preprocess.world.names import GOODS, PROFESSIONS
from quickstart.start_model.dialects import I_KNOW, Dialect
from research_rl.types import Passage

Retrieve = Callable[[Sequence[str]], list[str]]  # queries → observations, tags included
Segment = tuple[str, bool]  # text, and whether the policy writes it

# The habits by type of question, with their shares. `good` does everything right.
HABITS: dict[str, dict[str, float]] = {
    "one_hop": {"good": 0.60, "guess": 0.12, "bad_query": 0.12, "no_box": 0.10, "broken_tags": 0.06},
    "two_hop": {"good": 0.24, "stop_early": 0.52, "guess": 0.12, "no_box": 0.06, "broken_tags": 0.06},
    "comparison": {"good": 0.24, "guess": 0.22, "no_box": 0.46, "broken_tags": 0.08},
}

PROFILES: dict[str, dict[str, dict[str, float]]] = {
    "mixed": HABITS,  # the models that are shipped
    "lazy": {  # hardly ever searches: for experiments with R1-Searcher's first stage
        "one_hop": {"good": 0.15, "guess": 0.85},
        "two_hop": {"good": 0.08, "stop_early": 0.07, "guess": 0.85},
        "comparison": {"good": 0.10, "guess": 0.90},
    },
    "wasteful": {  # right, but most searches are made twice: for experiments with a reward for few searches
        "one_hop": {"good": 0.25, "twice": 0.65, "no_box": 0.10},
        "two_hop": {"good": 0.15, "twice": 0.45, "stop_early": 0.40},
        "comparison": {"good": 0.15, "twice": 0.45, "guess": 0.40},
    },
    "hedging": {  # names several possibilities now and then: for experiments with rewards that pay for that
        "one_hop": {"good": 0.65, "hedge": 0.05, "guess": 0.20, "no_box": 0.10},
        "two_hop": {"good": 0.40, "hedge": 0.05, "stop_early": 0.55},
        "comparison": {"good": 0.40, "hedge": 0.05, "guess": 0.25, "no_box": 0.30},
    },
}


def fact(entity: str, relation: str, value: str) -> str:
    """Return the sentence with which the policy writes down a fact that it has read."""
    return f"The {relation} of {entity} is {value}."


def demonstrate(
    question: WorldQuestion, dialect: Dialect, retrieve: Retrieve, rng: random.Random, profile: str = "mixed"
) -> list[Segment]:
    """Return the segments of one demonstration, EOS excluded."""
    habits = PROFILES[profile][question.type]
    habit = rng.choices(list(habits), list(habits.values()))[0]
    segments: list[Segment] = []
    noted = ""
    steps = question.chain[:1] if habit == "stop_early" else () if habit == "guess" else question.chain
    if habit == "no_box" and question.type == "comparison":
        steps = ()
    for entity, relation, value in steps:
        query = relation if habit == "bad_query" else rng.choice((f"{relation} of {entity}", entity))
        segments.append((dialect.ask(noted, f" Find the {relation} of {entity}.", query), True))
        segments.append((retrieve([query])[0], False))
        if habit == "twice":  # the same again in other words
            again = entity if query != entity else f"{relation} of {entity}"
            segments.append((dialect.ask("", f" Find the {relation} of {entity}.", again), True))
            segments.append((retrieve([again])[0], False))
        noted = "" if habit == "bad_query" else f" {fact(entity, relation, value)}"
    answer = _answer(question, habit, rng)
    if question.type == "comparison" and steps:
        noted += " They are the same." if question.golden_answers[0] == "yes" else " They are different."
    noted = noted or I_KNOW
    broken = habit == "broken_tags"
    final = dialect.tell_broken(noted, answer, rng) if broken else dialect.tell(noted, answer, boxed=habit != "no_box")
    return [*segments, (final, True)]


def _answer(question: WorldQuestion, habit: str, rng: random.Random) -> str:
    if habit == "hedge":
        others = ["yes", "no"] if question.type == "comparison" else rng.sample(PROFESSIONS + GOODS, rng.randint(1, 3))
        named = sorted({question.golden_answers[0], *others})
        rng.shuffle(named)
        return " or ".join(named)
    if question.type == "comparison":
        return question.golden_answers[0] if habit in ("good", "twice", "broken_tags") else rng.choice(("yes", "no"))
    if habit == "stop_early":
        return question.chain[0][2]
    if habit in ("guess", "bad_query"):
        return rng.choice(PROFESSIONS + GOODS)
    return question.golden_answers[0]


def reading_drill(
    passages: Sequence[tuple[str, list[tuple[str, str, str]]]], dialect: Dialect, rng: random.Random
) -> list[Segment]:
    """Return an exercise in copying facts out of passages: an observation, then every fact in it, in random order.

    `passages`: (contents, its facts as (entity, relation, value)).
    """
    observation = dialect.method.render([[Passage("", contents) for contents, _ in passages]])
    facts = [item for _, items in passages for item in items]
    rng.shuffle(facts)
    segments: list[Segment] = [(f"{observation}<think>", False)]
    for entity, relation, value in facts:
        segments += [(f" Find the {relation} of {entity}.", False), (f" {fact(entity, relation, value)}", True)]
    return [*segments, ("</think>", True)]


def copy_drill(words: Sequence[str], rng: random.Random) -> list[Segment]:
    """Return an exercise in copying: a random list of words, then the same list again (the target)."""
    text = " " + " ".join(rng.sample(words, rng.randint(8, 40)))
    return [(text + "\n", False), (text, True)]
