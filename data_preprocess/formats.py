"""File formats: FlashRAG's JSON lines in, verl's parquet out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.errors import DataError, missing_extra
from research_rl.files import write_atomically


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield FlashRAG questions ``{"id", "question", "golden_answers", …}``; further fields are kept under `metadata`.

    Raises:
        DataError: the file is missing or a row is malformed; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"no questions at {path}: give a file of JSON lines with id, question and golden_answers")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                question, golden = row["question"], row["golden_answers"]
                identifier = str(row["id"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: expected id, question and golden_answers ({error!r}), got {line.strip()[:100]!r}"
                ) from None
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{path}, line {number}: the question must be a text that is not blank, got {question!r}")
            golden = [golden] if isinstance(golden, str) else golden
            if not isinstance(golden, list) or not golden or not all(isinstance(g, str) and g.strip() for g in golden):
                raise DataError(
                    f"{path}, line {number}: golden_answers must be a list of texts that are not blank, got {golden!r}"
                )
            metadata = dict(row.get("metadata") or {})
            metadata.update({k: v for k, v in row.items() if k not in ("id", "question", "golden_answers", "metadata")})
            yield {"id": identifier, "question": question, "golden_answers": golden, "metadata": metadata}


def to_verl_row(row: Mapping[str, Any], data_source: str, split: str, index: int) -> dict[str, Any]:
    """Return verl's form of a FlashRAG question. `prompt` holds the bare question: the method writes the prompt at rollout time."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": row["question"]}],
        "ability": "search",
        "reward_model": {"style": "rule", "ground_truth": list(row["golden_answers"])},
        "extra_info": {
            "index": index,
            "id": str(row["id"]),
            "split": split,
            "question": row["question"],
            "type": str((row.get("metadata") or {}).get("type", "")),
        },
    }


def write_verl_parquet(path: Path, rows: Sequence[Mapping[str, Any]], data_source: str, split: str) -> int:
    """Write questions as verl parquet; return how many.

    Raises:
        DataError: there is no row.
        MissingExtraError: pyarrow is not installed.
    """
    if not rows:
        raise DataError(f"no questions for {path}")
    return write_parquet(path, [to_verl_row(row, data_source, split, index) for index, row in enumerate(rows)])


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write rows as parquet; return how many.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "train") from error
    table = pa.Table.from_pylist([dict(row) for row in rows])
    write_atomically(path, lambda part: pq.write_table(table, part))
    return len(rows)
