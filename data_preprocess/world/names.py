"""The word inventory of the fictional world.

Names are pairs of words, drawn from inventories that never change: the tokenizer of the quickstart's model knows each
*word*, while the *pairs* (the entities) are new in every world. Names of people and stems of places and companies are invented, so no
language model has facts about them; titles of books are pairs of English words.
"""

from __future__ import annotations

import random
from functools import cache

_ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s st t th tr v w z".split()
_VOWELS = "a e i o u ae ia oa".split()
_CODAS = "l ld m n nd r rn s sk t th x".split()
_INVENTORY_SEED = 20_25

PROFESSIONS = (
    "sculptor chemist painter surgeon lawyer baker poet pilot weaver farmer judge singer tailor miner printer sailor".split()
)
GOODS = "clocks rope glass paper bricks lamps pianos boots carpets knives tiles candles barrels ladders kettles buttons".split()
TOWN_PREFIXES = "Port Upper Lower Mount Saint New Old North South East West Great Little Castle Abbey Long".split()
COMPANY_SUFFIXES = "Works Mills Foundry Guild Press Forge Yard Brothers Workshop Company Union Trading".split()
RIVER_SUFFIXES = "Water Brook Beck Burn Stream Creek".split()
BOOK_ADJECTIVES = (
    "Silent Golden Broken Hidden Frozen Burning Distant Crooked Hollow Scarlet Restless Gentle Bitter Ancient Velvet "
    "Wandering Sleeping Secret Shining Falling Empty Patient Borrowed Painted"
).split()
BOOK_NOUNS = (
    "Orchard Harbour Lantern Mirror Garden Winter Letter Bridge Island Shadow Meadow Tower Compass Feather Market Window "
    "Kingdom Journey Station Violin Forest Candle Summer Anchor"
).split()


@cache
def inventory() -> dict[str, tuple[str, ...]]:
    """Return the invented words: 96 first names, 96 surnames, 96 stems for places and companies; all distinct."""
    rng = random.Random(_INVENTORY_SEED)
    taken: set[str] = set()

    def words(count: int) -> tuple[str, ...]:
        made: list[str] = []
        while len(made) < count:
            syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2)))]
            word = ("".join(syllables) + rng.choice(_CODAS)).capitalize()
            if len(word) >= 4 and word not in taken:
                taken.add(word)
                made.append(word)
        return tuple(made)

    return {"first": words(96), "last": words(96), "stem": words(96)}


def all_words() -> list[str]:
    """Return every capitalised or content word that a world can contain, sorted."""
    words = {word for group in inventory().values() for word in group}
    for group in (PROFESSIONS, GOODS, TOWN_PREFIXES, COMPANY_SUFFIXES, RIVER_SUFFIXES, BOOK_ADJECTIVES, BOOK_NOUNS):
        words.update(group)
    return sorted(words)
