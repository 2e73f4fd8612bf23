"""Trajectory records: what survives a crash and a resumed run."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter

import pytest

from evaluation.summary import summarize
from quickstart.training import timeline
from research_rl.errors import ConfigError
from research_rl.training.settings import Settings
from research_rl.training.trajectory_log import TrajectoryLog, TrajectoryReader, read


def record(step: int, em: float, split: str = "train", kind: str = "") -> dict:
    metrics = {"em": em, "f1": em, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": em}
    return {"step": step, "validate": split in ("test", "control"), "split": split, "type": kind, "metrics": metrics}


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
        file.write('{"attempt": 1.0, "validate": false, "split": "train", "st')
    assert [r["step"] for r in reader.records()] == [1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert [r["step"] for r in reader.records()] == [1, 2] == [r["step"] for r in read(tmp_path / "t")]
    TrajectoryLog(tmp_path / "t", 2.0).write({**record(2, 0.9), "newer": True})
    assert [r.get("newer", False) for r in reader.records()] == [False, True]


def test_a_damaged_line_is_left_out_counted_and_told(tmp_path, capsys):
    log = TrajectoryLog(tmp_path, 1.0)
    log.write(record(1, 0.1))
    path = next(tmp_path.glob("*.jsonl"))
    with path.open("ab") as file:
        file.write(b'{"step": 2, "sp\n[1, 2]\n\xff\n')
    log.write(record(3, 0.1))
    reader = TrajectoryReader(tmp_path)
    assert [r["step"] for r in reader.records()] == [1, 3]
    assert reader.damaged == 3
    assert "3 damaged lines" in capsys.readouterr().err


def test_a_directory_that_has_reached_its_size_gets_no_more_and_that_is_told_once(tmp_path, capsys):
    logs = [TrajectoryLog(tmp_path, max_bytes=3 * 2**20) for _ in range(2)]
    for step in range(20):
        for log in logs:
            log.write({**record(step, 0.1), "text": "x" * 2**18})
    assert capsys.readouterr().err.count("NO MORE TRAJECTORIES ARE WRITTEN") == 2  # each process says it once
    assert 3 * 2**20 <= sum(path.stat().st_size for path in tmp_path.iterdir()) < 5.2 * 2**20
    assert TrajectoryReader(tmp_path).records()[0]["step"] == 0
    TrajectoryLog(tmp_path).write(record(99, 0.1))  # without a limit
    assert read(tmp_path)[-1]["step"] == 99


def test_half_a_surrogate_pair_fails_no_rollout_and_comes_back(tmp_path):
    TrajectoryLog(tmp_path).write({**record(1, 0.1), "question": "a\ud800b"})
    assert read(tmp_path)[0]["question"] == "a\ud800b"


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
    records = [{"validate": part[0] == "e", "time": float(part[1:])} for part in parts.split()]
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


def test_what_is_trained_on_is_training_whatever_its_data_set_calls_it():
    summary = summarize([record(1, 0.5, "stage_1"), record(2, 1.0, "stage_1"), record(2, 0.0, "test")], 2)
    assert [(row["step"], row["em"]) for row in summary["steps"]] == [(1, 0.5), (2, 1.0)]


FILL = """
import resource, sys
from research_rl.training.trajectory_log import TrajectoryLog
log = TrajectoryLog(sys.argv[1])
record = {"step": 1, "validate": False, "split": "train", "text": "x" * 600}
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for n in range(3):
    log.write({**record, "n": n})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for n in range(3, 6):
    log.write({**record, "n": n, "text": "x" * 2000})
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.write({**record, "n": 6})
"""


def test_what_cannot_be_written_is_told_once_and_fails_nothing_and_the_rest_is_read(tmp_path):
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [r["n"] for r in read(tmp_path)] == [0, 1, 2, 6]  # half a line was written three times
    assert done.stderr.count("CANNOT BE WRITTEN") == 1
    assert "are written to" in done.stderr
    assert "3 were lost" in done.stderr


def test_a_directory_that_cannot_be_made_fails_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    TrajectoryLog(tmp_path / "file" / "t").write(record(1, 0.1))
    assert "CANNOT BE WRITTEN" in capsys.readouterr().err


def test_a_log_that_grows_is_cut_into_parquet_parts_and_read_as_one(tmp_path):
    log, reader, seen = TrajectoryLog(tmp_path, part_bytes=2_000), TrajectoryReader(tmp_path), []
    others = set(threading.enumerate())
    for step in range(200):
        log.write(record(step, 0.1))
        if step % 7 == 0:
            seen += [r["step"] for r in reader.new()]
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
    seen += [r["step"] for r in reader.new()]
    assert seen == list(range(200))
    assert [r["step"] for r in read(tmp_path)] == list(range(200))
    assert len(list(tmp_path.glob("*.parquet"))) > 10
    assert len(list(tmp_path.glob("*.jsonl"))) <= 1


def test_a_share_keeps_whole_groups_of_the_training_and_every_measurement(tmp_path):
    log = TrajectoryLog(tmp_path, share=0.3)
    for uid in range(1000):
        for _ in range(2):
            log.write({**record(1, 0.1), "uid": f"u{uid}"})
    for uid in range(10):
        log.write({**record(1, 0.1, "test"), "uid": f"u{uid}"})
    records = read(tmp_path)
    groups = Counter(r["uid"] for r in records if not r["validate"])
    assert set(groups.values()) == {2}
    assert 230 < len(groups) < 370
    assert sum(r["validate"] for r in records) == 10


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


@pytest.mark.parametrize(("name", "value"), [("trajectory_max_gb", 0), ("trajectory_max_gb", True), ("trajectory_logprobs", 1)])
def test_a_setting_of_the_log_that_cannot_be_is_refused(name, value):
    section = {"method": "research", "retrieval": {"url": "http://localhost:1"}}
    assert Settings.from_mapping(section | {"trajectory_max_gb": None, "trajectory_logprobs": True}).trajectory_max_gb is None
    with pytest.raises(ConfigError, match=f"research_rl.{name} must be"):
        Settings.from_mapping(section | {name: value})
