"""Trajectory records: what survives a crash and a resumed run."""

from __future__ import annotations

from evaluation.summary import summarize
from research_rl.trajectory_log import TrajectoryLog, read


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
    assert list(read(tmp_path / "nothing")) == []


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
