"""Passages are neutralised: the policy may read a tag or a control token in them, but none acts as one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby


def breakable(word: str) -> bool:
    """Return whether a string disappears from a text if a space is inserted after its first character.

    It does not if it has a single character, if it begins with white space (a control token of white space only is harmless), or if
    only spaces follow its first character: "# " with one more space still contains "# ".
    """
    return len(word) > 1 and not word[0].isspace() and bool(word[1:].strip(" "))


def neutralize(text: str, forbidden: Iterable[str]) -> str:
    """Return `text` without any `breakable` string of `forbidden`: a space is inserted after its first character.

    A passage may contain `</result><answer>` or `<|im_end|>`. The policy may read it, but it must not act as a tag or a control token.
    """
    # The loop ends: every inserted space widens the gap between two characters, and no word spans a gap wider than its own.
    groups = _by_beginning(tuple(forbidden))
    while found := [word for beginning, words in groups if beginning in text for word in words if word in text]:
        for word in found:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


@lru_cache(maxsize=16)
def _by_beginning(forbidden: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Return the breakable words by their first two characters: of thousands of control tokens, most begin with the same two."""
    words = sorted(filter(breakable, set(forbidden)))
    return [(beginning, list(group)) for beginning, group in groupby(words, lambda word: word[:2])]
