"""Rows of verl's form and of FlashRAG's: which are read, and as what."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from research_rl.errors import DataError
from research_rl.questions import question_of, read_questions, to_verl_row

OURS = to_verl_row({"id": 1, "question": "Who?", "golden_answers": ["Orla Venn", "Venn"]}, "world", "train", 0)
SEARCH_R1 = {  # as its scripts/data_process/nq_search.py writes it, the instruction shortened
    "id": "train_0", "question": "who?", "golden_answers": ["Orla Venn", "Venn"], "data_source": "nq", "ability": "fact-reasoning",
    "prompt": [{"role": "user", "content": "Answer the given question. Search by <search> query </search>. Question: who?\n"}],
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Orla Venn", "Venn"]}},
    "extra_info": {"split": "train", "index": 0},
}  # fmt: skip


def test_search_r1s_published_rows_are_read_as_their_question_and_their_target():
    assert question_of(SEARCH_R1) == ("who?", ["Orla Venn", "Venn"])


@pytest.mark.parametrize("row", [OURS, SEARCH_R1], ids=["ours", "search_r1"])
def test_a_row_reads_the_same_from_parquet_by_pyarrow_and_by_pandas(row, tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    read = question_of(row)
    assert read[1] == ["Orla Venn", "Venn"]
    assert question_of(pq.read_table(path).to_pylist()[0]) == read
    (frame,) = pq.read_table(path).to_pandas().to_dict("records")
    assert question_of(frame) == read


@pytest.mark.parametrize(
    "answers", ["Orla Venn", ["Orla Venn"], np.array(["Orla Venn"]), np.array(["Orla Venn"], dtype=object)]
)
def test_golden_answers_are_a_text_a_list_or_an_array(answers):
    for truth in (answers, {"target": answers}):
        assert question_of({**OURS, "reward_model": {"ground_truth": truth}}) == ("Who?", ["Orla Venn"])


@pytest.mark.parametrize(
    "truth",
    [{"target": ["a"], "numbers": [1]}, {"answer": ["a"]}, {"target": None}, {}, [], [" "], [["a"]], [1998], 1998, None, np.array([])],
)  # fmt: skip
def test_golden_answers_of_any_other_form_are_refused(truth):
    with pytest.raises(DataError, match=r"reward_model\.ground_truth must be"):
        question_of({**OURS, "reward_model": {"ground_truth": truth}})


@pytest.mark.parametrize(
    "change", [{"extra_info": {}}, {"extra_info": None}, {"extra_info": {"question": " "}}, {"reward_model": "a"}]
)
def test_an_instruction_is_never_taken_for_a_question_and_a_row_without_one_is_refused(change):
    with pytest.raises(DataError, match="must be a text"):
        question_of({**OURS, **change})


def test_packed_questions_are_read_and_a_file_that_breaks_off_or_is_no_text_is_told(tmp_path):
    path = tmp_path / "q.jsonl.gz"
    row = {"id": "1", "question": "Who?", "golden_answers": ["Orla"], "metadata": {}}
    packed = gzip.compress("".join(json.dumps({**row, "id": str(n)}) + "\n" for n in range(500)).encode())
    path.write_bytes(packed)
    assert [found["id"] for found in read_questions(path)] == [str(n) for n in range(500)]
    for broken, why in (
        (packed[: len(packed) // 2], r"q\.jsonl\.gz cannot be read as gzip of UTF-8 \(Compressed file ended"),
        (b"no gzip at all", r"q\.jsonl\.gz cannot be read as gzip of UTF-8 \(Not a gzipped file"),
        (gzip.compress(b"\xff\xfe"), r"q\.jsonl\.gz, line 1: it cannot be read as UTF-8"),
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=why):
            list(read_questions(path))


def test_a_line_without_end_is_told_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("research_rl.recordings.LONGEST_LINE", 1 << 20)
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 24)))
    assert path.stat().st_size < 1 << 15
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"q\.jsonl\.gz, line 1 is longer than 1 MiB: write one JSON object per line"):
            list(read_questions(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
