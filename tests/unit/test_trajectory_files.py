"""Closed parts read as the JSON lines did that they were made of."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.trajectory_files import Part, from_parquet, parts, schema, to_parquet

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.floats(allow_nan=False)
ACTIONS = st.one_of(
    st.builds(lambda text: {"kind": "Search", "query": text}, TEXT),
    st.builds(lambda text: {"kind": "Answer", "text": text}, TEXT),
    st.builds(lambda text: {"kind": "Invalid", "reason": text}, TEXT),
)
PASSAGES = st.lists(st.fixed_dictionaries({"id": TEXT, "score": st.none() | NUMBER}), max_size=3)
TOKENS = st.lists(st.fixed_dictionaries({"text": TEXT, "logprob": st.none() | NUMBER}), max_size=3)
TURNS = st.fixed_dictionaries(
    {"text": TEXT, "action": ACTIONS, "observation": TEXT, "passages": PASSAGES}, optional={"tokens": TOKENS}
)
RECORDS = st.fixed_dictionaries(
    {"attempt": NUMBER, "time": NUMBER, "step": st.integers(-1, 2**40), "validate": st.booleans(), "split": TEXT},
    optional={
        **dict.fromkeys(("type", "stage", "uid", "data_source", "question", "answer", "stop_reason"), st.none() | TEXT),
        "golden_answers": st.lists(TEXT, max_size=3),
        "ended_with_eos": st.booleans(),
        "metrics": st.dictionaries(TEXT, NUMBER, max_size=4),
        "turns": st.lists(TURNS, max_size=3),
        "something new": st.dictionaries(TEXT, TEXT | NUMBER, max_size=2),
        "other": TEXT,
    },
)


def read(directory: Path) -> list[dict]:
    return [record for name in sorted(parts(directory)) for batch in Part(directory, name).batches() for record in batch]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@given(st.lists(RECORDS, max_size=8))
@settings(max_examples=80, deadline=None)
def test_a_record_comes_back_the_same_from_every_form(records):
    with TemporaryDirectory() as name:
        directory = Path(name)
        path = write(directory / "a.jsonl", records)
        assert read(directory) == records
        (directory / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        assert read(directory) == records
        (directory / "a.jsonl.gz").unlink()
        to_parquet(write(path, records))
        assert not path.exists()
        assert read(directory) == records


@given(RECORDS, st.integers(0, 600), st.integers(0, 600))
@settings(max_examples=10, deadline=None)
def test_a_part_that_is_closed_while_it_is_read_is_read_once(record, count, cut):
    records = [{**record, "uid": str(number)} for number in range(count)]
    with TemporaryDirectory() as name:
        directory = Path(name)
        path, part = write(directory / "a.jsonl", records[:cut]), Part(directory, "a")
        found = [record for batch in part.batches() for record in batch]
        to_parquet(write(path, records))
        found += [record for batch in part.batches() for record in batch]
        assert found == records
        assert part.finished


def test_not_a_number_is_kept_and_the_schema_is_the_one_that_is_told(tmp_path):
    to_parquet(write(tmp_path / "a.jsonl", [{"step": 1, "metrics": {"kl": math.nan, "em": 1}}]))
    ((record,),) = from_parquet(tmp_path / "a.parquet")
    assert math.isnan(record["metrics"]["kl"])
    assert record["metrics"]["em"] == 1
    told = (
        "attempt time step validate split type stage uid data_source question golden_answers answer stop_reason ended_with_eos"
    )
    assert [*told.split(), "metrics", "turns", "other"] == schema().names


@pytest.mark.parametrize(
    "record",
    [
        {"step": "one"},
        {"metrics": {"em": "high"}},
        {"golden_answers": [1]},
        {"question": "half a pair \ud800"},
        {"turns": [{"text": 3}]},
    ],
)
def test_what_does_not_fit_the_schema_stays_as_it_was(tmp_path, record):
    path = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(ValueError, match=r"fit|surrogates"):
        to_parquet(path)
    assert read(tmp_path) == [record]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "record",
    [
        {"golden_answers": "one"},
        {"metrics": [1]},
        {"turns": "none"},
        {"turns": [{"text": "a", "new": 1}]},
        {"turns": [{"passages": [{"id": "1"}]}]},
        {"turns": [{"passages": {}}]},
        {"turns": [{"action": None}]},
    ],
)
def test_what_has_another_form_than_its_column_is_kept(tmp_path, record):
    to_parquet(write(tmp_path / "a.jsonl", [record]))
    assert read(tmp_path) == [record]


def test_a_part_with_a_damaged_line_stays_as_it_was(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n')
    with pytest.raises(ValueError, match="damaged"):
        to_parquet(path)
    assert read(tmp_path) == [{"step": 1}]


def test_a_half_line_is_read_when_it_is_whole(tmp_path):
    path, part = tmp_path / "a.jsonl", Part(tmp_path, "a")
    path.write_bytes(b'{"step": 1}\n{"st')
    reading = part.batches()
    assert next(reading) == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert list(reading) + list(part.batches()) == [[{"step": 2}]]
    assert part.damaged == 0
