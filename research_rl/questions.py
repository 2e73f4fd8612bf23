"""A question, as all parts of this project represent it, and its two file formats: FlashRAG's JSON lines and verl's parquet."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research_rl.errors import DataError, missing_extra
from research_rl.files import write_atomically
from research_rl.recordings import lines_of


class Dropped(Exception):
    """A valid row that is no use for training or evaluation (no answer, for example). The message is the reason that is counted."""


@dataclass(frozen=True)
class Question:
    """One question. `hops` is the number of facts to be found, 0 where the data set does not say; `answer_id` names the answer's entity."""

    id: str
    question: str
    golden_answers: tuple[str, ...]  # the first is the data set's answer, the others its aliases
    type: str = ""
    hops: int = 0
    level: str = ""
    supporting_titles: tuple[str, ...] = ()
    supporting_ids: tuple[str, ...] = ()  # of passages of the corpus that was made beside the questions
    answer_id: str = ""
    data_source: str = ""
    difficulty: str = ""  # for a model, by its own rollouts (`select`); `level` is the annotators'

    def cleaned(self) -> Question:
        """Return it with HTML entities resolved, white space squeezed, and empty or repeated answers and titles left out.

        Raises:
            ValueError: question or answers are not texts, or blank.
        """
        golden = tuple(dict.fromkeys(text for answer in self.golden_answers if (text := clean(answer))))
        titles = tuple(dict.fromkeys(text for title in self.supporting_titles if (text := clean(title))))
        question = clean(self.question)
        if not question:
            raise ValueError("the question is blank")
        if not golden:
            raise ValueError("every golden answer is blank")
        return replace(self, question=question, golden_answers=golden, supporting_titles=titles)


def clean(text: str) -> str:
    """Return a text with HTML entities resolved and white space squeezed.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected a text, got {text!r}")
    return " ".join(html.unescape(text).split())


def to_flashrag(question: Question) -> dict[str, Any]:
    """Return a question in FlashRAG's form; what FlashRAG has no field for is under `metadata`."""
    return {
        "id": question.id,
        "question": question.question,
        "golden_answers": list(question.golden_answers),
        "metadata": {
            "data_source": question.data_source,
            "type": question.type,
            "hops": question.hops,
            "level": question.level,
            "supporting_titles": list(question.supporting_titles),
            "supporting_ids": list(question.supporting_ids),
            "difficulty": question.difficulty,
        },
    }


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield FlashRAG questions ``{"id", "question", "golden_answers", …}`` (.gz too); further fields are kept under `metadata`.

    Raises:
        DataError: the file is missing or a row is malformed; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"no questions at {path}: give a file of JSON lines with id, question and golden_answers")
    for number, row in lines_of(path):
        if isinstance(row, DataError):
            raise row
        try:
            question, golden = row["question"], row["golden_answers"]
            identifier, metadata = str(row["id"]), dict(row.get("metadata") or {})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected id, question and golden_answers ({error!r}); got {row!r:.80}"
            ) from None
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{path}, line {number}: the question must be a text that is not blank, got {question!r}")
        golden = [golden] if isinstance(golden, str) else golden
        if not isinstance(golden, list) or not golden or not all(isinstance(g, str) and g.strip() for g in golden):
            raise DataError(f"{path}, line {number}: golden_answers must be a list of texts that are not blank, got {golden!r}")
        metadata.update({k: v for k, v in row.items() if k not in ("id", "question", "golden_answers", "metadata")})
        yield {"id": identifier, "question": question, "golden_answers": golden, "metadata": metadata}


def to_verl_row(row: Mapping[str, Any], data_source: str, split: str, index: int) -> dict[str, Any]:
    """Return verl's form of a FlashRAG question. `prompt` holds the bare question: the method writes the prompt at rollout time.

    Every row has every field, also those that the data set lacks, so that files of several data sets can be trained on together.
    """
    metadata = row.get("metadata") or {}
    return {
        "data_source": metadata.get("data_source") or data_source,
        "prompt": [{"role": "user", "content": row["question"]}],
        "ability": "search",
        "reward_model": {"style": "rule", "ground_truth": list(row["golden_answers"])},
        "extra_info": {
            "index": index,
            "id": str(row["id"]),
            "split": split,
            "question": row["question"],
            "type": str(metadata.get("type") or ""),
            "hops": int(metadata.get("hops") or 0),
            "level": str(metadata.get("level") or ""),
            "supporting_titles": [str(title) for title in metadata.get("supporting_titles") or ()],
            "supporting_ids": [str(passage) for passage in metadata.get("supporting_ids") or ()],
            "difficulty": str(metadata.get("difficulty") or ""),
        },
    }


def question_of(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return question and golden answers of a row of verl's form: ours (see `to_verl_row`), or the one that Search-R1 publishes, with the
    question in a column of its own and ``ground_truth: {"target": [...]}``. A list may be a numpy array, as pandas reads it.

    Raises:
        DataError: the row is of another form.
    """
    question = _mapping(row.get("extra_info")).get("question") or row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise DataError(
            f"the question must be a text that is not blank, in extra_info.question or in a column named question, got {question!r}"
        )
    found = _mapping(row.get("reward_model")).get("ground_truth")
    golden: Any = found["target"] if isinstance(found, Mapping) and set(found) == {"target"} else found
    golden = golden.tolist() if hasattr(golden, "tolist") else golden
    golden = [golden] if isinstance(golden, str) else golden
    if not isinstance(golden, list | tuple) or not golden or not all(isinstance(g, str) and g.strip() for g in golden):
        raise DataError(
            "reward_model.ground_truth must be a text, a list of texts, or a mapping whose only key is target with one of them, "
            f"none blank, got {found!r}"
        )
    return question, [str(answer) for answer in golden]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def write_verl_parquet(path: Path, rows: Sequence[Mapping[str, Any]], data_source: str, split: str) -> int:
    """Write FlashRAG questions as verl parquet; return how many. A row's own `metadata.data_source` takes precedence over `data_source`.

    Raises:
        DataError: there is no row.
        MissingExtraError: pyarrow is not installed.
    """
    if not rows:
        raise DataError(f"no questions for {path}")
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "data") from error
    text, texts = pa.string(), pa.list_(pa.string())
    info = {"index": pa.int64(), "id": text, "split": text, "question": text, "type": text, "hops": pa.int64(), "level": text}
    schema = pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": texts}),
            "extra_info": pa.struct({**info, "supporting_titles": texts, "supporting_ids": texts, "difficulty": text}),
        }
    )  # explicit, because verl joins files: the type that is inferred for a file without any title differs from that with titles
    return write_parquet(path, (to_verl_row(row, data_source, split, index) for index, row in enumerate(rows)), schema)


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any = None) -> int:
    """Write rows as parquet; return how many. Without `schema` (pyarrow's) it is inferred.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "data") from error
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    write_atomically(path, lambda part: pq.write_table(table, part))
    return table.num_rows
