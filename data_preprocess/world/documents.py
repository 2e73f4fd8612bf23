"""The world in documents longer than what a search shows: each fact stands behind a lead of more than a hundred characters.

With a search that shows how passages begin (the tool `search_titles`), what a question asks for has to be opened. The documents are
numbered in an order that is drawn, so that an id has to be read: a model guesses ids that begin with the name of its training split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from data_preprocess.world.world import SPLITS, Entity, World, WorldQuestion

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


def numbered(world: World) -> dict[str, tuple[int, Entity]]:
    """Return all entities with the numbers of their documents, by the entities' ids, in the order of the numbers."""
    entities = [entity for split in SPLITS for entity in world.entities[split]]
    random.Random(world.seed).shuffle(entities)
    return {entity.id: (number, entity) for number, entity in enumerate(entities, 1)}


def passages(world: World) -> Iterator[dict[str, str]]:
    """Yield the corpus, document by document: a passage that names the entity, ``NUMBER#1``, and one for each of its facts."""
    for number, entity in numbered(world).values():
        yield {"id": f"{number}#1", "contents": f"{entity.name}\n{entity.name} is a {entity.kind}."}
        for relation, value in entity.facts.items():
            text = f"{LEAD}{FACTS[relation].format(value)}"
            yield {"id": passage_of(number, entity, relation), "contents": f"{entity.name}\n{text}"}


def passage_of(number: int, entity: Entity, relation: str) -> str:
    """Return the id of the passage that tells one of an entity's facts."""
    return f"{number}#{list(entity.facts).index(relation) + 2}"


def evidence(documents: Mapping[str, tuple[int, Entity]], question: WorldQuestion) -> dict[str, object]:
    """Return a question's metadata: its passages, the documents that they are in, and the number of hops. `documents`: see `numbered`."""
    needed = [documents[name] for name in question.supporting]
    return {
        "supporting_ids": [
            passage_of(*document, relation) for document, (_, relation, _) in zip(needed, question.chain, strict=True)
        ],
        "supporting_titles": [entity.name for _, entity in needed],
        "hops": len(needed),
    }
