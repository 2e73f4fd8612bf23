"""Questions and passages of an experiment: a file of test questions, one of passages, and one of passages without the evidence."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_preprocess.coverage import Phrases
from experiment.declaration import Declaration
from rag_serving.indexing.formats import read_corpus
from research_rl.errors import DataError
from research_rl.files import write_jsonl
from research_rl.metrics import is_yes_no, normalize_answer
from research_rl.questions import read_questions
from research_rl.training.processes import last_word


def prepare(declaration: Declaration, data: Path, out: Path, seed: int) -> dict[str, Any]:
    """Write questions.jsonl, corpus.jsonl, train.parquet and test.parquet into `out`; return the counts.

    Raises:
        DataError: a file is malformed, passages of two files have the same id, or a command of `data_preprocess` refuses.
    """
    questions = list(asked_questions(declaration, data))
    write_jsonl(out / "questions.jsonl", questions)
    counts: dict[str, Any] = {"test": dict(Counter(row["metadata"]["data_source"] for row in questions))}
    few = list(first_of_each(questions, declaration.control_questions))
    write_jsonl(out / "control_questions.jsonl", few)
    counts["controls"] = dict(Counter(row["metadata"]["data_source"] for row in few))
    counts["passages"] = write_jsonl(out / "corpus.jsonl", corpus([data / name for name in declaration.passages]))
    _preprocess("flashrag", "--input", f"test={out / 'questions.jsonl'}", "--out", str(out))
    parts = []
    for name, one in declaration.sets.items():
        if one.train:
            _preprocess(
                "flashrag", "--input", f"train={data / one.train}", "--exclude", str(out / "questions.jsonl"), "--data-source", name,
                "--out", str(out / name),
            )  # fmt: skip  # a command line
            share = "" if one.share is None else f"={Fraction(str(one.share))}"
            parts += ["--part", f"{out / name / 'train.jsonl'}{share}"]
    if parts:
        counts["train"] = _preprocess("mix", *parts, "--out", str(out), "--seed", str(seed))["questions"]
    if "no_evidence" in declaration.controls:
        passages: Counter[str] = Counter()
        write_jsonl(out / "corpus_no_evidence.jsonl", without_evidence(_passages(out / "corpus.jsonl"), few, passages))
        counts["no_evidence"] = dict(passages)
    return counts


def asked_questions(declaration: Declaration, data: Path) -> Iterator[dict[str, Any]]:
    """Yield the test questions of every set: the first of its test file in the order of sha1(id), with ids SET/ID.

    The order does not depend on file or seed, so that a smaller sample is part of every larger one.

    Raises:
        DataError: a set has fewer questions than the declaration asks for.
    """
    for name, one in declaration.sets.items():
        rows = sorted(read_questions(data / one.test), key=lambda row: hashlib.sha1(row["id"].encode()).hexdigest())
        if one.questions is not None and len(rows) < one.questions:
            raise DataError(f"{data / one.test} has {len(rows)} questions, sets.{name}.questions asks for {one.questions}")
        for row in rows[: one.questions]:
            yield {**row, "id": f"{name}/{row['id']}", "metadata": {**row["metadata"], "data_source": name}}


def first_of_each(questions: Iterable[Mapping[str, Any]], count: int | None) -> Iterator[Mapping[str, Any]]:
    """Yield the first `count` questions of every set; all for None."""
    seen: Counter[str] = Counter()
    for row in questions:
        name = row["metadata"]["data_source"]
        seen[name] += 1
        if count is None or seen[name] <= count:
            yield row


def corpus(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Yield the passages of all files, in any format that the service indexes.

    Raises:
        DataError: passages of two files have the same id. (Within one file, the index refuses it.)
    """
    seen: dict[str, Path] = {}
    for path in files:
        for passage in read_corpus(path):
            if seen.setdefault(passage["id"], path) is not path:
                raise DataError(f"{path} and {seen[passage['id']]} both have a passage {passage['id']!r}: give them other ids")
            yield passage


def without_evidence(
    passages: Iterable[Mapping[str, str]], questions: Sequence[Mapping[str, Any]], counts: Counter[str]
) -> Iterator[Mapping[str, str]]:
    """Yield the passages that are no evidence for any of the questions; `counts` gets the number of passages by what was done and why.

    Removed are passages that a question names as supporting (by `supporting_ids`, else by title in `supporting_titles`), and passages that
    contain a golden answer of any question as whole words, normalised as in SQuAD; yes and no do not count as such answers.

    Raises:
        DataError: no passage is left.
    """
    metadata = [row["metadata"] for row in questions]
    ids = {identifier for one in metadata for identifier in one.get("supporting_ids") or ()}
    titles = {title for one in metadata if not one.get("supporting_ids") for title in one.get("supporting_titles") or ()}
    golden = {answer for row in questions for answer in row["golden_answers"] if not is_yes_no([answer])}
    answers = Phrases(map(normalize_answer, golden))
    for passage in passages:
        if passage["id"] in ids or passage["contents"].partition("\n")[0] in titles:
            counts["supporting"] += 1
        elif answers.within(normalize_answer(passage["contents"])):
            counts["hold an answer"] += 1
        else:
            counts["kept"] += 1
            yield passage
    if not counts["kept"]:
        raise DataError("without the evidence no passage is left: leave no_evidence out of controls, or give more passages")


def _passages(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _preprocess(*arguments: str) -> dict[str, Any]:
    """Run a command of `data_preprocess`; return its card.

    Raises:
        DataError: it refuses.
    """
    done = subprocess.run([sys.executable, "-m", "data_preprocess", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(last_word(done))
    return json.loads(done.stdout.splitlines()[-1])
