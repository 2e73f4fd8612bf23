"""What a policy that reads well would think and ask, question by question; the protocol in which it is written is the method's.

A plan is a generator: it yields a thought and what is asked for, is sent the passages that were shown, and returns the thought and the
answer at the end. So the queries of many questions can be sent together.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from data_preprocess.demonstrations.evidence import Needed, Split, Task, content_words, holds, proof, title_of
from research_rl.metrics import normalize_answer
from research_rl.questions import Dropped
from research_rl.tools.open import page_of
from research_rl.types import Passage, Search, ToolCall

_ASKS = re.compile(
    r"(?:(?:in|on|at|from|for|to|by|of|with|about) )?(?:who|whom|whose|what|which|when|where|why|how)\b", re.IGNORECASE
)
_UNQUOTABLE = "the needed passages hold the answer in no sentence that is short enough to quote"


@dataclass(frozen=True)
class Habits:
    """Shares of questions in which the policy does worse than it could: room for reinforcement learning."""

    bare_question: float = 0.3  # the first query is the question as it stands, not its content words
    stop_early: float = 0.1  # of the questions that need a further search: it answers with what the first one found
    extra_search: float = 0.1  # everything is found, and it searches once more


@dataclass(frozen=True)
class Told:
    """The end of a plan: the last thought, the answer, and the habits that showed."""

    thought: str
    answer: str
    habits: tuple[str, ...] = ()


Plan = Generator[tuple[str, Search | ToolCall], Sequence[Passage], Told]
Asking = Generator[tuple[str, Search | ToolCall], Sequence[Passage], None]


def plan(
    task: Task, habits: Habits, split: Split, max_searches: int, max_words: int, rng: random.Random, opens: bool = False
) -> Plan:
    """Return the plan of a question.

    `max_searches`: with what is opened, as in a rollout; `max_words`: of a sentence that is quoted; `opens`: the policy can open the
    document of a passage, and does where a search shows that the passage is there, and not yet what it says.

    Raises:
        Dropped: from the generator: the passages do not lead to the answer; the message is the reason.
    """
    return _Reader(task, habits, split, max_searches, max_words, rng, opens).plan()


@dataclass
class _Reader:
    task: Task
    habits: Habits
    split: Split
    max_searches: int
    max_words: int
    rng: random.Random
    opens: bool
    read: list[Passage] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    calls: int = 0
    opened: set[str] = field(default_factory=set)  # ids of the passages on the pages that were read
    quoted: list[str] = field(default_factory=list)
    answer: str = ""  # in the words of the golden answer that the passages hold
    shown: list[str] = field(default_factory=list)  # habits

    def plan(self) -> Plan:
        """Search until the evidence is there, and tell the answer."""
        if self.task.all_needed and not self.task.needed:
            raise Dropped("the annotation names no passage")
        stops, repeats = (self.rng.random() < share for share in (self.habits.stop_early, self.habits.extra_search))
        yield from self._search(*self._first())
        while not self._complete():
            name, new = self._next_name(), self._quotes()
            if stops and new and self.task.all_needed:
                self.shown.append("stop_early")
                return Told(_says(new), self._guess(name), tuple(self.shown))
            if not self._may_ask():
                raise Dropped(f"not found in {self.max_searches} searches")
            thought = _says(new) if new else " The passages do not help."
            yield from self._search(f"{thought} I need to look up {name}.", self._query_for(name))
        if repeats and self._may_ask():
            self.shown.append("extra_search")
            words, question = " ".join(content_words(self.task.question)), self.task.question
            yield from self._search(" I will search once more to be sure.", question if words in self.asked else words)
        quotes = self._quotes(with_answer=True)
        if not self.answer:
            raise Dropped(_UNQUOTABLE)
        concludes = f" So the answer is {self.answer}." if self.task.all_needed else ""
        return Told(f"{_says(quotes)}{concludes}", self.answer, tuple(self.shown))

    def _may_ask(self) -> bool:
        return self.calls < self.max_searches

    def _search(self, thought: str, query: str) -> Asking:
        self.asked.append(query)
        self.calls += 1
        self._take((yield thought, Search(query)))
        while self.opens and self._may_ask() and (passage := self._worth_opening()):
            yield from self._open(passage)

    def _take(self, found: Sequence[Passage]) -> None:
        """Note what was shown. What is known of a passage already gives way to more of it."""
        shown = {passage.id: passage for passage in found if passage.id}
        known = {passage.id: passage for passage in self.read}
        longer = {
            name: one for name, one in shown.items() if name not in known or len(one.contents) > len(known[name].contents)
        }
        self.read = list((known | longer).values())

    def _worth_opening(self) -> Passage | None:
        """Return the first passage that was shown of a document that is needed, if it was not opened and what was shown proves nothing."""
        if not self.task.all_needed and self._complete():
            return None
        titles = {normalize_answer(needed.title) for needed in self.task.needed}
        for passage in self.read:
            if passage.id in self.opened or normalize_answer(title_of(passage)) not in titles:
                continue
            if not self.task.all_needed or not self._telling(passage):
                return passage
        return None

    def _open(self, passage: Passage) -> Asking:
        """Open a document where the passage stands, and read on as long as no needed passage of it was seen."""
        thought, asked = f" {title_of(passage)} may say it.", {"id": passage.id}
        while True:
            self.calls += 1
            found = yield thought, ToolCall("open", asked)
            self.opened |= {passage.id, *(one.id for one in found)}
            seen = len(self._evidence())
            self._take(found)
            page, pages = page_of(found)
            there = len(self._evidence()) > seen or any(one.id == passage.id for one in self._evidence())
            if there or page >= pages or not self._may_ask():
                return
            thought, asked = " I need to read on.", {"id": passage.id, "page": page + 1}

    def _first(self) -> tuple[str, str]:
        """Return the first thought and query."""
        question = self.task.question
        named = [needed.name for needed in self.task.needed if holds(question, needed.name)]
        wish = f" I need to find out {_lowered(question)}." if _ASKS.match(question) else ""
        if self.rng.random() < self.habits.bare_question:
            self.shown.append("bare_question")
            return wish or f" I need to look up {_listed(named) or 'this'}.", question
        if named and self.task.all_needed and self.rng.random() < 0.5:
            return f" I need to look up {named[0]} first.", named[0]
        words = " ".join(content_words(question)) or question
        return wish or f" I need to look up {_listed(named) or words}.", words

    def _missing(self) -> list[Needed]:
        return [needed for needed in self.task.needed if not any(needed.is_(passage) for passage in self.read)]

    def _complete(self) -> bool:
        if self.task.all_needed:
            return not self._missing()
        return self._proof(self.read, self.task.answers) is not None

    def _next_name(self) -> str:
        """Return the name of a passage that is missing and that a reader can know: the question or what was read names it."""
        seen = " ".join((self.task.question, *(passage.contents for passage in self._evidence())))
        named = [needed.name for needed in self._missing() if holds(seen, needed.name)]
        for name in named:
            if name not in self.asked:
                return name
        if self.task.all_needed:
            raise Dropped(
                "a needed passage is not found by its name" if named else "nothing that was read names what is missing"
            )
        raise Dropped(_UNQUOTABLE if self._evidence() else "no passage that is found proves the answer")

    def _query_for(self, name: str) -> str:
        """Return the name, or the name and what the question asks beside what is named already."""
        others = " ".join(needed.name for needed in self.task.needed)
        rest = [word for word in content_words(self.task.question) if not holds(others, word)]
        return name if not rest or self.rng.random() < 0.6 else f"{name} {' '.join(rest[-3:])}"

    def _evidence(self) -> list[Passage]:
        return [passage for passage in self.read if any(needed.is_(passage) for needed in self.task.needed)]

    def _proof(self, passages: Sequence[Passage], phrases: Sequence[str]) -> tuple[str, str] | None:
        annotated = {passage.id for passage in self._evidence()}
        return proof(self.task, passages, phrases, self.split, self.max_words, annotated)

    def _quotes(self, with_answer: bool = False) -> list[str]:
        """Return the useful sentences not quoted yet: one of each needed passage, or, where any one suffices, the one with the answer.

        `with_answer`: the last time; notes the golden answer whose words the passages hold.
        """
        answers = self.task.answers
        if self.task.yes_no:
            self.answer = answers[0]
        if not self.task.all_needed:
            found = self._proof(self.read, answers)
            self.answer = found[1] if found else ""
            return [found[0]] if found else []
        new = []
        for passage in self._evidence():
            if found := self._useful(passage):
                sentence, answer = found
                self.answer = self.answer or answer
                if sentence not in self.quoted:
                    new.append(sentence)
            elif with_answer:
                raise Dropped("no sentence of a needed passage is short enough to quote")
        self.quoted += new
        return new

    def _useful(self, passage: Passage) -> tuple[str, str] | None:
        """Return the sentence with the answer; else the one that names another needed passage; else the nearest to the question."""
        if not self.task.yes_no and (held := self._proof([passage], self.task.answers)):
            return held
        nearest = self._proof([passage], ())
        return self._telling(passage) or (nearest and (nearest[0], ""))

    def _telling(self, passage: Passage) -> tuple[str, str] | None:
        """Return the sentence with the answer, and the answer; else the one that names another needed passage; None if there is neither."""
        if not self.task.yes_no and (held := self._proof([passage], self.task.answers)):
            return held
        others = [needed.name for needed in self.task.needed if not needed.is_(passage)]
        pointing = self._proof([passage], others) if others else None
        return pointing and (pointing[0], "")

    def _guess(self, name: str) -> str:
        """Return the answer of a policy that stops too early: what it would have looked up next."""
        return self.rng.choice(("yes", "no")) if self.task.yes_no else name


def _says(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f" The passage{'s say' if len(sentences) > 1 else ' says'}: {' '.join(sentences)}"


def _lowered(question: str) -> str:
    return (question[:1].lower() + question[1:]).rstrip("?. ")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
