"""From a data set's own files to `SPLIT.jsonl` (FlashRAG), `SPLIT.parquet` (verl), `SPLIT.dropped.jsonl` and `SPLIT.card.json`.

The steps, in this order: read, clean, limits, repeated questions and ids, overlap with other sets, sub-sample. Every row that is left
out before the last step is in `SPLIT.dropped.jsonl` with its place and the reason; questions that are not drawn are only counted.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_preprocess.contexts import Contexts
from data_preprocess.datasets import DATASETS
from data_preprocess.overlap import Overlap
from data_preprocess.sources import BadRow, Row
from research_rl.errors import DataError
from research_rl.files import sha256, write_jsonl, write_text
from research_rl.metrics import normalize_answer
from research_rl.questions import Dropped, Question, to_flashrag, write_verl_parquet

MALFORMED = "malformed"
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_MONTH = re.compile(r"\b(january|february|march|april|may|june|july|august|september|october|november|december)\b")


@dataclass(frozen=True)
class Limits:
    """What a question may be. Lengths are in words (split at white space)."""

    most_question_words: int | None = None
    most_answer_words: int | None = None  # of the first golden answer
    yes_no: bool = True

    def broken(self, question: Question) -> str:
        """Return the reason to leave a question out, empty if there is none."""
        answer = question.golden_answers[0]
        if self.most_question_words is not None and len(question.question.split()) > self.most_question_words:
            return f"question longer than {self.most_question_words} words"
        if self.most_answer_words is not None and len(answer.split()) > self.most_answer_words:
            return f"answer longer than {self.most_answer_words} words"
        return "" if self.yes_no or answer_type(answer) != "yes/no" else "yes/no answer"


@dataclass
class Conversion:
    """The questions of one split, and a record of the rows that became none."""

    rows: int = 0
    questions: list[Question] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)  # where, reason, detail
    renamed: int = 0
    not_drawn: int = 0

    def drop(self, where: str, reason: str, detail: str = "") -> None:
        """Leave a row out and record why."""
        self.dropped.append({"where": where, "reason": reason, "detail": detail})


def answer_type(answer: str) -> str:
    """Return "yes/no", "number", "date" or "text"."""
    text = normalize_answer(answer)
    if text in ("yes", "no"):
        return "yes/no"
    if _YEAR.fullmatch(answer.strip()) or (_MONTH.search(text) and re.search(r"\d", text)):
        return "date"
    return "number" if text.replace(" ", "").isdigit() else "text"


def convert(
    dataset: str,
    rows: Iterable[Row | BadRow],
    split: str,
    *,
    limits: Limits | None = None,
    strict: bool = False,
    aliases: Mapping[str, Sequence[str]] | None = None,
    data_source: str = "",
    unique: bool = True,
    contexts: Contexts | None = None,
) -> Conversion:
    """Turn rows into questions. A question without an id gets ``SPLIT-number``; an id that stands for two questions gets ``#2``.

    With `unique`, what is asked a second time (after normalisation) is dropped; an evaluation set is kept as its authors count it.
    `contexts` takes the paragraphs of every row in which they are sound, whatever becomes of the question.

    Raises:
        DataError: a row is malformed, and `strict`; or every row is.
    """
    read, paragraphs, limits, done = DATASETS[dataset].read, DATASETS[dataset].paragraphs, limits or Limits(), Conversion()
    asked: dict[str, str] = {}
    ids: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        done.rows += 1
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.reason)
            supporting = contexts.add(paragraphs(row.fields)) if contexts and paragraphs else ()
            question = read(row.fields)
            extra = (aliases or {}).get(question.answer_id, ())
            question = replace(question, golden_answers=(*question.golden_answers, *extra)).cleaned()
            question = replace(question, supporting_ids=question.supporting_ids or supporting)
        except Dropped as dropped:
            done.drop(row.where, str(dropped))
            continue
        except (KeyError, TypeError, ValueError, AttributeError, SyntaxError, IndexError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            if strict:
                raise DataError(f"{row.where}: malformed: {reason}") from None
            done.drop(row.where, MALFORMED, reason)
            continue
        if reason := limits.broken(question):
            done.drop(row.where, reason, question.question)
            continue
        key = normalize_answer(question.question)
        if unique and key in asked:
            done.drop(row.where, "asked twice", f"as {asked[key]}")
            continue
        asked[key] = row.where
        identifier = question.id or f"{split}-{number}"
        ids[identifier] += 1
        if ids[identifier] > 1:
            done.renamed += 1
            identifier = f"{identifier}#{ids[identifier]}"
        done.questions.append(replace(question, id=identifier, data_source=question.data_source or data_source or dataset))
    malformed = [drop for drop in done.dropped if drop["reason"] == MALFORMED]
    if malformed and len(malformed) == done.rows:
        raise DataError(
            f"none of {done.rows} rows is one of {dataset} ({DATASETS[dataset].files}); "
            f"the first, {malformed[0]['where']}: {malformed[0]['detail']}"
        )
    return done


def without_overlap(done: Conversion, overlap: Overlap) -> None:
    """Leave out the questions that another set asks, and record each."""
    kept: list[Question] = []
    for question, found in zip(done.questions, overlap.find([q.question for q in done.questions]), strict=True):
        if found:
            done.drop(question.id, f"{found[0]} as an excluded question", f"{question.question} | {found[1]}")
        else:
            kept.append(question)
    done.questions = kept


def sample(done: Conversion, count: int, seed: int) -> Conversion:
    """Take `count` questions out of `done`, chosen by seed, in their order, and return them as a conversion of their own.

    Raises:
        DataError: there are fewer.
    """
    if not 0 < count <= len(done.questions):
        raise DataError(
            f"{count} questions are to be drawn (--hold-out, --sample), and {len(done.questions)} are there: ask for fewer, at least 1"
        )
    drawn = set(random.Random(seed).sample(range(len(done.questions)), count))
    both: tuple[list[Question], list[Question]] = [], []
    for index, question in enumerate(done.questions):
        both[index in drawn].append(question)
    done.questions = both[0]
    return Conversion(done.rows, both[1], done.dropped, done.renamed, len(both[0]))


def write_split(out: Path, split: str, done: Conversion, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files of one split, the card last; return the card.

    Raises:
        DataError: no question is left.
    """
    reasons = dict(Counter(drop["reason"] for drop in done.dropped).most_common())
    dropped = out / f"{split}.dropped.jsonl"
    if not done.questions:
        write_jsonl(dropped, done.dropped)
        raise DataError(f"no question is left for {split}: {done.rows} rows read, dropped {reasons}")
    rows = [to_flashrag(question) for question in done.questions]
    jsonl, parquet = out / f"{split}.jsonl", out / f"{split}.parquet"
    write_verl_parquet(parquet, rows, done.questions[0].data_source, split)  # first, as it needs a package that may be missing
    write_jsonl(jsonl, rows)
    write_jsonl(dropped, done.dropped)
    full = {
        **card,
        "split": split,
        "rows_read": done.rows,
        "dropped": reasons,
        "questions": len(rows),
        "ids_renamed": done.renamed,
        "not_drawn": done.not_drawn,
        **counts(done.questions),
        "sha256": {path.name: sha256(path) for path in (jsonl, parquet)},
    }
    write_text(out / f"{split}.card.json", json.dumps(full, indent=2, ensure_ascii=False) + "\n")
    return full


def counts(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """Return how many questions there are by data source, answer type, type, hops and level."""
    by = {
        "data_sources": Counter(q.data_source for q in questions),
        "answer_types": Counter(answer_type(q.golden_answers[0]) for q in questions),
        "golden_answers": Counter("one" if len(q.golden_answers) == 1 else "with aliases" for q in questions),
        "types": Counter(q.type for q in questions),
        "hops": Counter(str(q.hops) for q in questions),
        "levels": Counter(q.level for q in questions),
        "difficulties": Counter(q.difficulty for q in questions),
    }
    return {name: dict(sorted(counter.items())) for name, counter in by.items() if set(counter) - {"", "0"}}


def source_of(source: str, config: str | None, split: str | None) -> dict[str, Any]:
    """Return what a card says about where rows came from."""
    path = Path(source)
    if path.is_file():
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return {"hub": source, "config": config, "split": split}
