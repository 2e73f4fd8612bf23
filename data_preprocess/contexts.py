"""The paragraphs that come with a data set's questions, as a corpus: each once, over all rows and splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from data_preprocess.datasets.paragraphs import Paragraph
from research_rl.files import sha256, write_text
from research_rl.questions import Question, clean

PASSAGES, CARD = "passages.jsonl", "passages.card.json"


class Contexts:
    """Writes passages ``{"id", "contents": "title\\ntext"}`` as they are met.

    An id is the data set's name and a hash of the contents: the same paragraph has one id whatever file it came from and in whatever
    order files are read, and two texts under one title have two.
    """

    def __init__(self, file: TextIO, dataset: str) -> None:
        """`file` takes the passages; `dataset` begins every id."""
        self._file, self._dataset = file, dataset
        self.titles: dict[str, str] = {}  # of each passage, by id
        self.counts: Counter[str] = Counter()

    def add(self, paragraphs: Iterable[Paragraph]) -> tuple[str, ...]:
        """Write what is new of one row's paragraphs; return the ids of the supporting ones, each once.

        Raises:
            ValueError: a title or a text is not a string.
        """
        supporting: dict[str, None] = {}
        cleaned = [(clean(title), clean(text), named) for title, text, named in paragraphs]
        self.counts["paragraphs"] += len(cleaned)
        self.counts["rows without paragraphs"] += not cleaned
        for title, text, named in cleaned:
            if not text:
                self.counts["paragraphs without text"] += 1
                continue
            contents = f"{title}\n{text}"
            identifier = f"{self._dataset}-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"
            if identifier not in self.titles:
                self.titles[identifier] = title
                self._file.write(json.dumps({"id": identifier, "contents": contents}, ensure_ascii=False) + "\n")
            if named:
                supporting[identifier] = None
        return tuple(supporting)

    def resolve(self, questions: list[Question]) -> dict[str, int]:
        """Look up, in place, the supporting titles whose paragraph is not in their own row (HotpotQA's fullwiki files hold retrieved
        paragraphs, not gold ones): the passage of another row counts if it alone has that title. Return what a split's card says
        of it.
        """
        ids: dict[str, list[str]] = defaultdict(list)
        for identifier, title in self.titles.items():
            ids[title].append(identifier)
        counts = Counter({"questions": 0, "of another row": 0, "unknown titles": 0, "questions with unknown titles": 0})
        for number, question in enumerate(questions):
            own = {self.titles[identifier] for identifier in question.supporting_ids}
            missing = [title for title in question.supporting_titles if title not in own]
            found = [ids[title][0] for title in missing if len(ids.get(title, ())) == 1]
            questions[number] = replace(question, supporting_ids=(*question.supporting_ids, *found))
            unknown = len(missing) - len(found)
            counts["questions"] += bool(questions[number].supporting_ids)
            counts["of another row"] += len(found)
            counts["unknown titles"] += unknown
            counts["questions with unknown titles"] += bool(unknown)
        return dict(counts)

    def card(self, out: Path, sources: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the card of the passages that lie in `out`, and return it."""
        texts = Counter(self.titles.values())
        card = {
            "dataset": self._dataset,
            "sources": sources,
            "rows_without_paragraphs": self.counts["rows without paragraphs"],
            "paragraphs_read": self.counts["paragraphs"],
            "paragraphs_without_text": self.counts["paragraphs without text"],
            "passages": len(self.titles),
            "titles": len(texts),
            "titles_with_several_texts": sum(count > 1 for count in texts.values()),
            "sha256": {PASSAGES: sha256(out / PASSAGES)},
        }
        write_text(out / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        return card
