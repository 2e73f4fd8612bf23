"""A fictional world: passages whose facts exist nowhere else, and questions that only a search can answer.

Entities are people, towns, companies and books; rivers are only named. Names share words on purpose (two companies called
"Dravix …", six people called "… Okreth"), so that a lexical retriever returns distractors along with the evidence.
Train, dev and test questions are about disjoint sets of entities; all of them live in one corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_preprocess.world import names

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_SHARES: dict[Split, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
_PER_TOWN, _TOWNS = 3, 300  # 300 towns, 900 people, 450 companies and 450 books: 2,100 passages at scale 1


@dataclass
class Entity:
    """One thing of the world: its passage's id, its kind, its name, and its facts (relation → name or word)."""

    id: str
    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)
    links: dict[str, Entity] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class WorldQuestion:
    """A question with its golden answers, the ids of the passages that prove it, and the chain of facts behind it."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    type: Literal["one_hop", "two_hop", "comparison"]
    supporting: tuple[str, ...]
    chain: tuple[tuple[str, str, str], ...]  # (entity, relation, value), in the order in which they are needed


class World:
    """A world grown from one seed: the same seed and scale give the same passages and questions, byte for byte."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        """Grow a world of about ``2,100 * scale`` passages."""
        self.seed = seed
        self._rng = random.Random(seed)
        self._taken: set[str] = set()
        self.entities: dict[Split, list[Entity]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            self._grow(split, max(4, round(_TOWNS * scale * _SHARES[split])))

    def _name(self, first: Sequence[str], second: Sequence[str]) -> str:
        for _ in range(10_000):
            name = f"{self._rng.choice(first)} {self._rng.choice(second)}"
            if name not in self._taken:
                self._taken.add(name)
                return name
        raise ValueError(f"the world has run out of names ({len(first) * len(second)} of this kind): use a smaller scale")

    def _grow(self, split: Split, towns: int) -> None:
        words, rng = names.inventory(), self._rng
        made: dict[str, list[Entity]] = {"town": [], "person": [], "company": [], "book": []}

        def add(kind: str, first: Sequence[str], second: Sequence[str]) -> Entity:
            entity = Entity(f"{split}-{kind}-{len(made[kind])}", kind, self._name(first, second))
            made[kind].append(entity)
            return entity

        rivers = [self._name(words["stem"], names.RIVER_SUFFIXES) for _ in range(max(2, towns // 3))]
        for _ in range(towns):
            add("town", names.TOWN_PREFIXES, words["stem"]).facts["river"] = rng.choice(rivers)
        for _ in range(towns * _PER_TOWN):
            person = add("person", words["first"], words["last"])
            town = rng.choice(made["town"])
            person.facts = {"birthplace": town.name, "profession": rng.choice(names.PROFESSIONS)}
            person.links["birthplace"] = town
        for kind, relation in (("company", "founder"), ("book", "author")):
            for _ in range(towns * _PER_TOWN // 2):
                first, second = (
                    (words["stem"], names.COMPANY_SUFFIXES) if kind == "company" else (names.BOOK_ADJECTIVES, names.BOOK_NOUNS)
                )
                entity = add(kind, first, second)
                person = rng.choice(made["person"])
                entity.facts, entity.links = {relation: person.name}, {relation: person}
                if kind == "company":
                    entity.facts["goods"] = rng.choice(names.GOODS)
        self.entities[split] = [entity for group in made.values() for entity in group]

    def passages(self) -> Iterator[dict[str, str]]:
        """Yield the corpus in FlashRAG's form, ``{"id", "contents"}`` with contents = title, newline, text."""
        for split in SPLITS:
            for entity in self.entities[split]:
                yield {"id": entity.id, "contents": f"{entity.name}\n{describe(entity)}"}

    def questions(self, split: Split, count: int, seed: int = 0) -> list[WorldQuestion]:
        """Return `count` distinct questions of one split: 30 % one-hop, 50 % two-hop, 20 % comparisons (half of them yes).

        Raises:
            ValueError: the split has fewer distinct questions of a type than asked for.
        """
        rng = random.Random(f"{self.seed}/{split}/{seed}")
        by_kind: dict[str, list[Entity]] = {}
        for entity in self.entities[split]:
            by_kind.setdefault(entity.kind, []).append(entity)
        two_hop, comparison = round(count * 0.5), round(count * 0.2)
        pools = (
            ("one_hop", count - two_hop - comparison, _one_hop),
            ("two_hop", two_hop, _two_hop),
            ("comparison", comparison, _comparison),
        )
        questions: list[WorldQuestion] = []
        for kind, wanted, make in pools:
            seen: set[str] = set()
            for attempt in range(200 * wanted + 1):
                if len(seen) == wanted:
                    break
                text, answer, chain, supporting = make(rng, by_kind, attempt)
                if text in seen:
                    continue
                seen.add(text)
                identifier = f"{split}-{kind}-{len(seen)}"
                questions.append(WorldQuestion(identifier, text, (answer,), kind, supporting, chain))  # type: ignore[arg-type]  # a name of `pools`
            if len(seen) < wanted:
                raise ValueError(f"{split} has only {len(seen)} {kind} questions, {wanted} were asked for: use a larger scale")
        rng.shuffle(questions)
        return questions


def describe(entity: Entity) -> str:
    """Return the text of an entity's passage."""
    name, facts = entity.name, entity.facts
    variant = sum(map(ord, name)) % 2
    if entity.kind == "town":
        texts = (f"The town of {name} lies on the river {facts['river']}.", f"On the river {facts['river']} lies {name}.")
    elif entity.kind == "person":
        texts = (
            f"The {facts['profession']} {name} was born in {facts['birthplace']}.",
            f"Born in {facts['birthplace']}, {name} was a {facts['profession']}.",
        )
    elif entity.kind == "company":
        texts = (
            f"The company {name}, founded by {facts['founder']}, makes {facts['goods']}.",
            f"{name} is a maker of {facts['goods']} founded by {facts['founder']}.",
        )
    else:
        texts = (f"The book {name} was written by {facts['author']}.", f"{facts['author']} wrote the book {name}.")
    return texts[variant]


_Made = tuple[str, str, tuple[tuple[str, str, str], ...], tuple[str, ...]]
_ASK = {
    ("person", "birthplace"): "Where was {} born?",
    ("person", "profession"): "What was the profession of {}?",
    ("town", "river"): "On which river does {} lie?",
    ("company", "founder"): "Who founded {}?",
    ("company", "goods"): "What does {} make?",
    ("book", "author"): "Who wrote {}?",
}
_ASK_TWO = {
    ("company", "founder", "birthplace"): "Where was the founder of {} born?",
    ("company", "founder", "profession"): "What was the profession of the founder of {}?",
    ("book", "author", "birthplace"): "Where was the author of {} born?",
    ("book", "author", "profession"): "What was the profession of the author of {}?",
    ("person", "birthplace", "river"): "On which river does the birthplace of {} lie?",
}
_COMPARE = {
    ("person", "profession"): "Did {} and {} have the same profession?",
    ("company", "goods"): "Do {} and {} make the same goods?",
}


def _one_hop(rng: random.Random, by_kind: dict[str, list[Entity]], attempt: int) -> _Made:
    kind, relation = list(_ASK)[attempt % len(_ASK)]
    entity = rng.choice(by_kind[kind])
    answer = entity.facts[relation]
    return _ASK[kind, relation].format(entity.name), answer, ((entity.name, relation, answer),), (entity.id,)


def _two_hop(rng: random.Random, by_kind: dict[str, list[Entity]], attempt: int) -> _Made:
    kind, first, second = list(_ASK_TWO)[attempt % len(_ASK_TWO)]
    entity = rng.choice(by_kind[kind])
    bridge = entity.links[first]
    answer = bridge.facts[second]
    chain = ((entity.name, first, bridge.name), (bridge.name, second, answer))
    return _ASK_TWO[kind, first, second].format(entity.name), answer, chain, (entity.id, bridge.id)


def _comparison(rng: random.Random, by_kind: dict[str, list[Entity]], attempt: int) -> _Made:
    kind, relation = list(_COMPARE)[attempt % len(_COMPARE)]
    left = rng.choice(by_kind[kind])
    same = attempt % 4 < 2
    pool = [e for e in by_kind[kind] if e is not left and (e.facts[relation] == left.facts[relation]) == same]
    right = rng.choice(pool or [e for e in by_kind[kind] if e is not left])
    answer = "yes" if left.facts[relation] == right.facts[relation] else "no"
    chain = ((left.name, relation, left.facts[relation]), (right.name, relation, right.facts[relation]))
    return _COMPARE[kind, relation].format(left.name, right.name), answer, chain, (left.id, right.id)
