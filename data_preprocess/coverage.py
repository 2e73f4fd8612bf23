"""What a corpus holds of what questions ask for: their golden answers and their supporting passages.

Passages are read once, in blocks over all cores, and all answers are looked for at the same time: where two neighbouring words begin
some answer, as many words as it has are looked up among the answers. So the work grows with the words of the corpus, not
with the number of questions.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_preprocess.corpus.blocks import BLOCK, Block, blocks_of
from data_preprocess.corpus.documents import MALFORMED, flashrag
from data_preprocess.corpus.pool import in_order, progress_in_bytes
from research_rl.cpu import cores
from research_rl.errors import DataError
from research_rl.metrics import holds_phrase, is_yes_no, normalize_answer
from research_rl.questions import clean

_scan: Scan


class Phrases:
    """Normalised phrases to be found in texts as whole words, like `holds_phrase` finds them one by one."""

    def __init__(self, phrases: Iterable[str]) -> None:
        """A phrase without a word is left out: it is in no text."""
        self._words: set[str] = set()  # the phrases of one word
        # the others by their first two words, since single words begin many, and then by their number of words
        self._longer: dict[tuple[str, str], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for phrase in phrases:
            words = phrase.split()
            if len(words) > 1:
                self._longer[words[0], words[1]][len(words)].add(phrase)
            else:
                self._words.update(words)

    def within(self, normalized: str) -> set[str]:
        """Return the phrases that are in a normalised text."""
        words = normalized.split()
        found = self._words.intersection(words)
        starts = [at for at, pair in enumerate(itertools.pairwise(words)) if pair in self._longer]
        for at in starts:
            for length, phrases in self._longer[words[at], words[at + 1]].items():
                if (phrase := " ".join(words[at : at + length])) in phrases:
                    found.add(phrase)
        return found

    def take(self, normalized: str) -> set[str]:
        """Return the phrases that are in a normalised text, and look for them no longer."""
        found = self.within(normalized)
        self._words -= found
        for phrase in found:
            self._remove(phrase.split())
        return found

    def _remove(self, words: list[str]) -> None:
        if len(words) < 2:
            return
        lengths = self._longer[words[0], words[1]]
        lengths[len(words)].remove(" ".join(words))
        if not lengths[len(words)]:
            del lengths[len(words)]
        if not lengths:
            del self._longer[words[0], words[1]]


@dataclass(frozen=True)
class Asked:
    """What coverage needs of a question."""

    question: str
    golden_answers: tuple[str, ...]
    supporting_ids: tuple[str, ...]
    supporting_titles: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Asked:
        """Read a FlashRAG question."""
        ids, titles = (row["metadata"].get(name) or () for name in ("supporting_ids", "supporting_titles"))
        return cls(
            row["question"], tuple(row["golden_answers"]), tuple(map(str, ids)), tuple(dict.fromkeys(map(clean, titles)))
        )


@dataclass
class Seen:
    """What was met in passages: golden answers (normalised), ids and titles of supporting passages, and the numbers of the questions of
    which a supporting passage, recognised by its id or by its title, holds an answer.
    """

    passages: int = 0
    answers: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    titles: set[str] = field(default_factory=set)
    answered_by_id: set[int] = field(default_factory=set)
    answered_by_title: set[int] = field(default_factory=set)

    def add(self, other: Seen) -> None:
        """Add the counts of another block."""
        self.passages += other.passages
        for name in ("answers", "ids", "titles", "answered_by_id", "answered_by_title"):
            getattr(self, name).update(getattr(other, name))


class Scan:
    """What is looked for, in one process."""

    def __init__(self, questions: Sequence[Asked]) -> None:
        self._answers = [[normalize_answer(answer) for answer in asked.golden_answers] for asked in questions]
        self._phrases = Phrases({answer for answers in self._answers for answer in answers})
        self._by_id: dict[str, list[int]] = defaultdict(list)
        self._by_title: dict[str, list[int]] = defaultdict(list)
        for number, asked in enumerate(questions):
            for identifier in asked.supporting_ids:
                self._by_id[identifier].append(number)
            for title in asked.supporting_titles:
                self._by_title[title].append(number)

    def look(self, line: bytes, seen: Seen) -> None:
        """Look at one passage, a line of JSON.

        Raises:
            one of MALFORMED: it is none.
        """
        passage = flashrag(line)
        normalized, title = normalize_answer(f"{passage.title}\n{passage.text}"), clean(passage.title)
        seen.passages += 1
        seen.answers |= self._phrases.take(normalized)
        if passage.id in self._by_id:
            seen.ids.add(passage.id)
            seen.answered_by_id |= self._answered(self._by_id[passage.id], normalized)
        if title in self._by_title:
            seen.titles.add(title)
            seen.answered_by_title |= self._answered(self._by_title[title], normalized)

    def _answered(self, numbers: Iterable[int], normalized: str) -> set[int]:
        return {number for number in numbers if holds_phrase(normalized, self._answers[number])}


def _start(questions: Sequence[Asked]) -> None:
    global _scan  # one per process
    _scan = Scan(questions)


def _look_at(block: Block) -> tuple[Seen, int, str]:
    """Return what a block holds, its number of lines, and "" or what is wrong with the last of them, at which it then stopped."""
    seen, lines = Seen(), block.lines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                _scan.look(line, seen)
            except MALFORMED as error:
                return seen, number, f"{type(error).__name__}: {error}"[:300]
    return seen, len(lines), ""


def scan(questions: Sequence[Asked], passages: Sequence[Path], workers: int = 0) -> Seen:
    """Read all passages once. `workers` 0: one per core.

    Raises:
        DataError: a file is missing, breaks off, or a line is no passage; the message names it.
    """
    for path in passages:
        if not path.is_file():
            raise DataError(f"no passages at {path}: give a file of JSON lines with id and contents, plain or .gz")
    sizes = [path.stat().st_size for path in passages]
    most = min(workers or cores(), 1 + sum(sizes) // BLOCK)  # a process without a block would start for nothing
    blocks = (block for path in passages for block in blocks_of(path, ("",)))
    total, lines = Seen(), defaultdict(int)
    with progress_in_bytes(sum(sizes)) as progress:
        for block, (seen, count, wrong) in in_order(blocks, _look_at, (), most, _start, (questions,)):
            lines[block.name] += count
            if wrong:
                raise DataError(f"{block.name}, line {lines[block.name]}: no passage: {wrong}")
            total.add(seen)
            progress.update(block.read)
    return total


def figures(questions: Sequence[Asked], first: int, seen: Seen) -> dict[str, Any]:
    """Return the counts of one set of questions, whose first has the number `first` in the scan.

    A set's supporting passages are told by id where the corpus has one of its ids, or where the set has no titles; else (another corpus) by
    title. A title that the corpus lacks is missing either way.
    """
    with_text = {number for number, asked in enumerate(questions, first) if not is_yes_no(asked.golden_answers)}
    supported = {number for number, asked in enumerate(questions, first) if asked.supporting_ids or asked.supporting_titles}
    by_id = any(not seen.ids.isdisjoint(asked.supporting_ids) for asked in questions) or not any(
        asked.supporting_titles for asked in questions
    )
    found = {
        number
        for number in with_text
        if any(normalize_answer(answer) in seen.answers for answer in questions[number - first].golden_answers)
    }
    complete = {number for number in supported if _complete(questions[number - first], seen, by_id)}
    answered = seen.answered_by_id if by_id else seen.answered_by_title
    return {
        "questions": len(questions),
        "yes_no": len(questions) - len(with_text),
        "supporting_by": ("id" if by_id else "title") if supported else None,
        "answer_in_corpus": share(len(found), len(with_text)),
        "supporting_in_corpus": share(len(complete), len(supported)),
        "answer_in_supporting": share(len(answered & with_text), len(with_text & supported)),
    }


def _complete(asked: Asked, seen: Seen, by_id: bool) -> bool:
    needed_ids = asked.supporting_ids if by_id or not asked.supporting_titles else ()
    return seen.titles.issuperset(asked.supporting_titles) and seen.ids.issuperset(needed_ids)


def share(count: int, of: int) -> dict[str, Any]:
    """Return a count, its total, and the share; the share is None if the total is 0."""
    return {"count": count, "of": of, "share": round(count / of, 4) if of else None}
