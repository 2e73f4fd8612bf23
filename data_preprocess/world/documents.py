"""The world in documents longer than what a search shows: each fact stands behind a lead of more than a hundred characters.

With a search that shows how passages begin (the tool `search_titles`), what a question asks for has to be opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_preprocess.world.world import SPLITS, Entity, Question, World

LEAD = (  # longer than what `search_titles` shows of a text
    "What follows was put together from letters, registers and the memory of those who were there, as far as they agree. "
)
FACTS = {  # relation → what its passage says
    "birthplace": "The birthplace is {}.",
    "profession": "The profession was that of a {}.",
    "river": "The river on which it lies is the {}.",
    "founder": "The one who founded it was {}.",
    "goods": "What they make is {}.",
    "author": "The author who wrote it was {}.",
}


def passages(world: World) -> Iterator[dict[str, str]]:
    """Yield the corpus, document by document: a passage that names the entity, ``ID#1``, and one for each of its facts."""
    for split in SPLITS:
        for entity in world.entities[split]:
            yield {"id": f"{entity.id}#1", "contents": f"{entity.name}\n{entity.name} is a {entity.kind}."}
            for relation, value in entity.facts.items():
                text = f"{LEAD}{FACTS[relation].format(value)}"
                yield {"id": passage_of(entity, relation), "contents": f"{entity.name}\n{text}"}


def passage_of(entity: Entity, relation: str) -> str:
    """Return the id of the passage that tells one of an entity's facts."""
    return f"{entity.id}#{list(entity.facts).index(relation) + 2}"


def by_id(world: World) -> dict[str, Entity]:
    """Return all entities by their ids."""
    return {entity.id: entity for split in SPLITS for entity in world.entities[split]}


def evidence(entities: Mapping[str, Entity], question: Question) -> dict[str, object]:
    """Return a question's metadata: its passages, the documents that they are in, and the number of hops. `entities`: see `by_id`."""
    needed = [entities[name] for name in question.supporting]
    return {
        "supporting_ids": [passage_of(one, relation) for one, (_, relation, _) in zip(needed, question.chain, strict=True)],
        "supporting_titles": [one.name for one in needed],
        "hops": len(needed),
    }
