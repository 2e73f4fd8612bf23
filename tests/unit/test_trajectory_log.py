"""Trajectory records: what survives a crash and a resumed run."""

from __future__ import annotations

import pytest

from evaluation.summary import summarize
from quickstart.training import timeline
from research_rl.training.trajectory_log import TrajectoryLog, TrajectoryReader, read


def record(step: int, em: float, split: str = "train", kind: str = "") -> dict:
    metrics = {"em": em, "f1": em, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": em}
    return {"step": step, "split": split, "type": kind, "metrics": metrics}


def test_a_step_that_was_run_twice_counts_once_and_the_last_attempt_counts(tmp_path):
    first, second, third = TrajectoryLog(tmp_path, 1.0), TrajectoryLog(tmp_path, 2.0), TrajectoryLog(tmp_path, 2.0)
    first.write(record(1, 0.1))
    first.write(record(2, 0.2))
    second.write(record(2, 0.5))
    third.write(record(2, 0.7))  # another worker of the second attempt
    assert [(r["step"], r["metrics"]["em"]) for r in read(tmp_path)] == [(1, 0.1), (2, 0.5), (2, 0.7)]


def test_a_half_written_last_line_is_left_out(tmp_path):
    TrajectoryLog(tmp_path, 1.0).write(record(1, 0.1))
    path = next(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text() + '{"step": 2, "sp')
    assert [r["step"] for r in read(tmp_path)] == [1]


def test_a_missing_directory_has_no_records(tmp_path):
    assert read(tmp_path / "nothing") == []


def test_a_directory_that_is_being_written_is_read_on_and_a_line_counts_when_it_is_whole(tmp_path):
    reader, log = TrajectoryReader(tmp_path / "t"), TrajectoryLog(tmp_path / "t", 1.0)
    assert reader.records() == []
    log.write(record(1, 0.1))
    assert [r["step"] for r in reader.records()] == [1]
    path = next((tmp_path / "t").glob("*.jsonl"))
    with path.open("a") as file:
        file.write('{"attempt": 1.0, "split": "train", "st')
    assert [r["step"] for r in reader.records()] == [1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert [r["step"] for r in reader.records()] == [1, 2] == [r["step"] for r in read(tmp_path / "t")]
    TrajectoryLog(tmp_path / "t", 2.0).write({**record(2, 0.9), "newer": True})
    assert [r.get("newer", False) for r in reader.records()] == [False, True]


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ("", (100, 0, 0, 0)),
        ("e10 e12 t13 t40 e41 e45", (10, 2, 29, 59)),
        ("e10 e12 t13 t40", (10, 2, 88, 0)),  # a first stage
        ("t13 t40 e41", (13, 0, 28, 59)),  # a later one, or what was left of a run
        ("e10 e14", (10, 0, 0, 90)),  # only measured again
    ],
)
def test_the_time_of_a_training_is_told_by_its_parts(parts, seconds):
    records = [{"split": "train" if part[0] == "t" else "test", "time": float(part[1:])} for part in parts.split()]
    told = timeline(records, 0.0, 100.0)
    names = ("engine start", "measuring before", "training", "measuring after, saving")
    assert tuple(told.get(name, 0) for name in names) == seconds


def test_the_summary_takes_the_first_and_the_last_measurement_and_one_mean_per_step():
    records = [record(0, 0.0, "test"), record(0, 1.0, "test"), record(4, 1.0, "test"), record(0, 0.0, "control"),
               record(4, 0.0, "control"), record(1, 0.0), record(1, 1.0), record(4, 1.0)]  # fmt: skip
    summary = summarize(records, 4)
    assert (summary["test"]["before"]["em"], summary["test"]["after"]["em"]) == (0.5, 1.0)
    assert summary["control"]["after"] == {
        "em": 0.0, "f1": 0.0, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": 0.0, "n": 1,
    }  # fmt: skip
    assert [(row["step"], row["em"], row["n"]) for row in summary["steps"]] == [(1, 0.5, 2), (4, 1.0, 1)]


def test_the_summary_tells_the_types_of_questions_apart():
    records = [
        record(0, 0.0, "test", "a"),
        record(0, 1.0, "test", "b"),
        record(3, 1.0, "test", "a"),
        record(3, 1.0, "test", "b"),
    ]
    assert summarize(records, 3)["test"]["em_by_type"] == {
        "a": {"before": 0.0, "after": 1.0, "n": 1},
        "b": {"before": 1.0, "after": 1.0, "n": 1},
    }
