"""The speed of an index that is not there yet: postings as an index of that size would have them, and what is told of searching them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import cpu_count

from rag_serving.indexing import build_index, speed
from rag_serving.indexing.estimate import Estimate, table
from rag_serving.indexing.postings import Written
from rag_serving.indexing.speed import MOST_PASSAGES, _batches, _drawn, _Search, measure
from rag_serving.indexing.synthetic import synthetic


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    rows = (row for _, row in zip(range(200), synthetic(30), strict=False))
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(folder / "c.jsonl", folder / "i", processes=1)
    return folder / "i"


@given(st.integers(1, 500), st.data())
def test_rows_that_are_drawn_rise_and_are_of_the_index(passages, data):
    count = data.draw(st.integers(1, passages))
    rows = _drawn(passages, count, np.random.default_rng(0))
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < passages


def test_rows_that_are_drawn_lie_all_over_the_index():
    rows = _drawn(1_000_000, 10_000, np.random.default_rng(0))
    assert np.histogram(rows, 10, (0, 1_000_000))[0] == pytest.approx([1_000] * 10, rel=0.15)


@pytest.mark.parametrize("growth", [0.5, 1, 7])
def test_a_word_is_in_the_share_of_passages_that_it_was_in_and_a_row_has_all_words_of_its_query(index, growth):
    written = Written.read(index / "bm25")
    common = np.argsort(np.diff(written.starts))[::-1][:6].tolist()
    passages = int(200 * growth)
    made = _Search([common[:4], common[3:]], written, passages, np.random.default_rng(0))
    postings = [made._rows[start:end] for start, end in zip(made._starts, made._ends, strict=True)]
    asked = common[:4] + common[3:]
    assert [len(rows) for rows in postings] == [round(growth * np.diff(written.starts)[term]) for term in asked]
    assert all((np.diff(rows) > 0).all() for rows in postings)
    for query in (postings[:4], postings[4:]):
        assert set.intersection(*(set(rows.tolist()) for rows in query))
    for term, start, end in zip(asked, made._starts, made._ends, strict=True):
        assert set(made._scores[start:end]) <= set(written.scores[written.starts[term] : written.starts[term + 1]])


def test_no_more_postings_are_made_at_once_and_in_all_than_memory_and_time_allow(monkeypatch):
    monkeypatch.setattr(speed, "_AT_ONCE", 100)
    monkeypatch.setattr(speed, "_IN_ALL", 300)
    asked, held = [[0, 1], [0], [2], [3], [4], [0]], np.array([60, 50, 120, 90, 200])
    assert list(_batches(asked, held)) == [[[0, 1]], [[0], [2]], [[3], [4]]]  # 110, 180 and 290; a term is made once
    assert list(_batches(asked[:1], held / 100)) == [asked[:1]]


def test_a_speed_is_measured_for_any_size_that_memory_may_hold(index):
    for passages in (1, 10_000):
        told = measure(index, passages, threads=2)
        assert told.milliseconds > 0
        assert told.per_second > 0
    assert measure(index, MOST_PASSAGES + 1) is None


def test_where_no_word_is_known_no_speed_is_told(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "contents": "the of"}\n')
    build_index(tmp_path / "c.jsonl", tmp_path / "i", processes=1)
    assert measure(tmp_path / "i", 1_000) is None


def test_the_table_tells_speed_where_it_was_measured_and_only_there():
    slow = Estimate("bm25", 1, 1, 1, 1, 1.0)
    assert "answers" not in table([slow])
    assert "in 5.4 ms" in table([Estimate("bm25", 1, 1, 1, 1, 1.0, 5.4, 185.2, 371.0)])
    assert f"185 a second on one\nthread, 371 on {cpu_count()} cores" in table(
        [Estimate("bm25", 1, 1, 1, 1, 1.0, 5.4, 185.2, 371.0)]
    )
