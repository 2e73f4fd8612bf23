"""What proves an answer: the passages that a question's annotation names, and sentences in them; compared as SQuAD's metric does."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from research_rl.metrics import holds_phrase, is_yes_no, normalize_answer
from research_rl.types import Passage

Split = Callable[[str], list[str]]  # a text into sentences
_STOP_WORDS = frozenset(
    "a about am an and are as at be been by can could did do does for from get gets got had has have he her him his how i if in into is "
    "it its me most my not of on one or our s she so than that the their them then there these they this those to was we were what when "
    "where which while who whom whose why will with would you your".split()
)


@dataclass(frozen=True)
class Needed:
    """A passage that the annotation names: by id, or, where there is none, by title."""

    id: str
    title: str

    @property
    def name(self) -> str:
        """The title without what tells it from its namesakes, as a reader would write it."""
        return re.sub(r"\s*\([^()]*\)\s*$", "", self.title)

    def is_(self, passage: Passage) -> bool:
        """Return whether a passage is this one."""
        return passage.id == self.id if self.id else normalize_answer(title_of(passage)) == normalize_answer(self.title)


@dataclass(frozen=True)
class Task:
    """A question and its evidence. `all_needed`: every passage has to be found (hops); else any one of them holds the answer."""

    id: str
    question: str
    answers: tuple[str, ...]
    needed: tuple[Needed, ...]
    all_needed: bool

    @property
    def yes_no(self) -> bool:
        """Whether the answer is yes or no, so that no sentence can hold it."""
        return is_yes_no(self.answers)


def task_of(row: Mapping[str, Any], evidence: str, titles: Mapping[str, str]) -> Task:
    """Return the task of a FlashRAG question with `metadata.supporting_ids` or `supporting_titles`.

    `evidence`: "all" of them are needed, "any" of them does, or "auto": all where `metadata.hops` is 2 or more (to yes and no, always all).
    `titles`: of passages, by id.
    """
    metadata = row.get("metadata") or {}
    ids = [str(identifier) for identifier in metadata.get("supporting_ids") or ()]
    named = [str(title) for title in metadata.get("supporting_titles") or ()]
    if ids:
        paired = named if len(named) == len(ids) else [""] * len(ids)
        needed = tuple(Needed(one, titles.get(one, title)) for one, title in zip(ids, paired, strict=True))
    else:
        needed = tuple(Needed("", title) for title in named)
    several = evidence == "all" or (evidence == "auto" and int(metadata.get("hops") or 0) > 1)
    task = Task(str(row["id"]), " ".join(row["question"].split()), tuple(row["golden_answers"]), needed, several)
    return replace(task, all_needed=True) if task.yes_no else task


def title_of(passage: Passage) -> str:
    """Return the first line of a passage, which is its title in FlashRAG's form."""
    return passage.contents.partition("\n")[0]


def holds(text: str, phrase: str) -> bool:
    """Return whether a text holds a phrase as whole words, both normalised."""
    return holds_phrase(_normalized(text), [_normalized(phrase)])


def content_words(text: str) -> list[str]:
    """Return the words of a text as they stand, without stop words and the punctuation at their ends."""
    words = [word.strip("\"'“”‘’.,;:!?()[]") for word in text.split()]
    return [word for word in words if word and word.lower() not in _STOP_WORDS]


def overlap(question: str, text: str) -> float:
    """Return the share of a question's content words that occur in a text; plurals count as their singulars."""
    asked = _stems(question)
    return len(asked & _stems(text)) / len(asked) if asked else 0.0


def proof(
    task: Task, passages: Iterable[Passage], phrases: Sequence[str], split: Split, max_words: int, annotated: Collection[str]
) -> tuple[str, str] | None:
    """Return the best sentence that holds one of `phrases`, and that phrase; any sentence, and "", if there is no phrase to hold.

    It is at most `max_words` long; where there is no phrase to hold, a long one that is best has no substitute (None). Best is what shares
    most words with the question, and the earliest of equals. A passage may hold the answer by chance. So passages whose ids are among
    `annotated` go before the others; where any one passage suffices, their sentence must share a word with the question. In the others,
    sentence and title together must share at least half of the question's words.
    """
    found: list[tuple[tuple[bool, float], str, str]] = []
    for passage in passages:
        title, _, text = passage.contents.partition("\n")
        for sentence in _sentences(split, text):
            phrase = next((phrase for phrase in phrases if holds(sentence, phrase)), "")
            if phrases and (not phrase or len(sentence.split()) > max_words):
                continue
            shared = overlap(task.question, f"{title} {sentence}")
            named = passage.id in annotated
            if (task.all_needed or overlap(task.question, sentence) > 0) if named else shared >= 0.5:
                found.append(((named, shared), sentence, phrase))
    best = max(found, key=lambda one: one[0], default=None)
    return (best[1], best[2]) if best and len(best[1].split()) <= max_words else None


@lru_cache(maxsize=100_000)
def _sentences(split: Split, text: str) -> list[str]:
    # a text that is cut short ends in no sentence, and an infobox is none
    return [one for one in split(text) if not one.lstrip('"“')[:1].islower() and one[0] not in "(),;" and one[-1] in '.!?"”)']


@lru_cache(maxsize=100_000)
def _normalized(text: str) -> str:
    return normalize_answer(text)


@lru_cache(maxsize=100_000)
def _stems(text: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in normalize_answer(" ".join(content_words(text))).split())
