"""The viewer's index of a run, and what its page gets."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from research_rl.errors import ConfigError
from research_rl.trajectory_files import to_parquet
from research_rl.web.viewer import main
from research_rl.web.viewer_app import create_viewer
from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_store import listed, words

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \ud800 \0 \u2028 </div>"


def trajectory(step: int, question: str = "who is it", **changes) -> dict:
    score = changes.pop("score", 1.0)
    turns = [
        {
            "text": "<search>policyword</search>", "action": {"kind": "Search", "query": "policyword"}, "observation": "seenword here",
            "passages": [{"id": "p1", "score": None}],
        },
        {"text": "<answer>Orla</answer>", "action": {"kind": "Answer", "text": "Orla"}, "observation": "", "passages": []},
    ]  # fmt: skip
    return {
        "attempt": 1.0, "time": 1.0, "step": step, "validate": False, "split": "train", "type": "", "stage": "", "uid": "u",
        "data_source": "nq", "question": question, "golden_answers": ["Orla"], "answer": "Orla", "stop_reason": "answered",
        "ended_with_eos": True, "turns": turns,
        "metrics": {"score": score, "em": score, "searches": 1.0, "well_formed": 1.0, "reward/answer": 0.0, "reward/format": 0.0},
    } | changes  # fmt: skip


def write(path: Path, records: list[dict], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    broken = trajectory(
        2, "what is broken", score=0.0, stop_reason="no_action", answer="",
        turns=[{"text": "nothing", "action": {"kind": "Invalid", "reason": "no <answer>"}, "observation": "", "passages": []}],
        metrics={"score": 0.0, "em": 0.0, "searches": 0.0, "well_formed": 0.0, "reward/format": -2.0, "reward/rule/one_box": 0.0},
    )  # fmt: skip
    directory = tmp_path / "run"
    write(directory / "trajectories" / "1-h-1-00000.jsonl", [trajectory(1), trajectory(2), broken])
    write(directory / "trajectories" / "2-h-2-00000.jsonl", [trajectory(2, validate=True, split="test", score=0.25)])
    return directory


def cache(run: Path) -> Cache:
    found = Cache(run, run.parent / "cache")
    found.fill()
    return found


def asked(client: TestClient, **filters) -> list[tuple]:
    rows = client.get("/api/list", params=filters).json()["rows"]
    return [(row["step"], row["validate"], row["question"]) for row in rows]


def test_every_filter_leaves_what_it_names(run):
    client = TestClient(create_viewer([cache(run)]))
    assert len(asked(client)) == 4
    assert asked(client, step=1) == [(1, 0, "who is it")]
    assert asked(client, validate=1) == [(2, 1, "who is it")]
    assert asked(client, split="train", step=2, em=1) == [(2, 0, "who is it")]
    for filters in (
        {"question": "what is broken"}, {"stop_reason": "no_action"}, {"max": 0.1}, {"rule": "not well formed"},
        {"rule": "no <answer>"}, {"rule": "one_box"},
    ):  # fmt: skip
        assert asked(client, **filters) == [(2, 0, "what is broken")], filters
    assert asked(client, min=0.2, max=0.3) == [(2, 1, "who is it")]
    assert [row[0] for row in asked(client, order="last")] == [2, 2, 2, 1]
    assert asked(client, order="worst")[0][2] == "what is broken"
    told = client.get("/api/facets").json()
    assert told["step"] == [[1, 1], [2, 3]]
    assert sorted(told["rule"]) == [["no <answer>", 1], ["not well formed", 1], ["one_box", 1]]


@pytest.mark.parametrize("filters", [{"step": "x"}, {"min": "x"}, {"order": "x"}, {"run": 7}, {"offset": "x"}])
def test_a_filter_that_is_none_is_refused_with_a_sentence(run, filters):
    answer = TestClient(create_viewer([cache(run)])).get("/api/list", params=filters)
    assert answer.status_code in (400, 404, 422)
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("policyword", 3),
        ("policyw", 3),
        ('"policyw"', 0),
        ("observation:policyword", 0),
        ("policy:policyword observation:seenword", 3),
        ('"seenword here"', 3),
        ('"here seenword"', 0),
        ("broken", 1),
        ("policyword broken", 0),
        ("((( AND", 0),
        ("* \"' - :", 4),
        ("NEAR(a", 0),
        ("\0", 4),
    ],
)
def test_a_search_finds_words_phrases_and_authors_and_has_no_syntax_to_break(run, query, found):
    assert listed(cache(run), {"q": query})["total"] == found


def test_a_search_as_fts_takes_it():
    assert words('policy:"a b" c de') == 'policy : "a b" AND "c" AND "de"*'
    assert words("de c") == '"de" AND "c"'  # one letter begins too many words
    assert words('x"y') == '"x y"*'
    assert words(" ( ") == ""


def test_the_same_question_is_found_at_other_steps_and_in_the_other_run(run, tmp_path):
    other, rollout = tmp_path / "other", trajectory(0)
    del rollout["validate"]
    measured = {"id": "q1", "n": 1, "metadata": {"split": "dev", "type": "bridge"}, **rollout}
    write(other / "measured" / "trained.jsonl", [measured])
    client = TestClient(create_viewer([cache(run), cache(other)]))
    first = client.get("/api/list", params={"step": 1}).json()["rows"][0]
    same = client.get("/api/same", params={"key": first["key"]}).json()
    assert [(row["run"], row["source"], row["step"], row["validate"]) for row in same] == [
        (0, "", 1, 0), (0, "", 2, 0), (0, "", 2, 1), (1, "measured/trained", 0, 1)
    ]  # fmt: skip
    there = client.get("/api/trajectory", params={"run": 1, "key": same[-1]["key"]}).json()
    assert there["record"]["turns"] == trajectory(0)["turns"]
    assert (there["split"], there["type"], there["uid"]) == ("dev", "bridge", "q1")


def test_a_run_that_goes_on_is_read_on_and_a_part_that_is_closed_is_not_read_again(run):
    found = cache(run)
    client = TestClient(create_viewer([found]))
    before = client.get("/api/runs").json()[0]
    path = write(run / "trajectories" / "1-h-1-00000.jsonl", [trajectory(3)], "a")
    with path.open("a") as file:
        file.write('{"half": ')
    found.fill()
    assert client.get("/api/runs").json()[0]["version"] == before["version"] + 1
    assert len(asked(client, step=3)) == 1
    path.write_text(path.read_text().removesuffix('{"half": '))
    keys = [row["key"] for row in client.get("/api/list").json()["rows"]]
    to_parquet(path)
    found.fill()
    write(run / "trajectories" / "3-h-3-00000.jsonl", [trajectory(4)])
    found.fill()
    assert [row["key"] for row in client.get("/api/list").json()["rows"]][:-1] == keys
    assert len(asked(client)) == 6


def test_the_page_follows_by_itself(run, monkeypatch):
    monkeypatch.setattr("research_rl.web.viewer_app.POLL_S", 0.01)
    read_on, fill = threading.Semaphore(0), Cache.fill
    monkeypatch.setattr(Cache, "fill", lambda self, stop=None: (fill(self, stop), read_on.release()))
    with TestClient(create_viewer([Cache(run, run.parent / "cache")])) as client:
        read_on.acquire(timeout=20)
        write(run / "trajectories" / "1-h-1-00000.jsonl", [trajectory(3)], "a")
        for _ in range(2):
            read_on.acquire(timeout=20)
        assert len(asked(client, step=3)) == 1


def test_of_a_step_that_was_run_twice_the_last_attempt_is_shown(run):
    found = cache(run)
    write(run / "trajectories" / "9-h-9-00000.jsonl", [trajectory(2, "asked again", attempt=2.0)])
    write(run / "trajectories" / "9-h-9-00001.jsonl", [trajectory(2, "too late", attempt=1.5)])
    found.fill()
    client = TestClient(create_viewer([found]))
    assert asked(client, step=2, validate=0) == [(2, 0, "asked again")]
    told = client.get("/api/runs").json()[0]
    assert (told["superseded"], told["trajectories"]) == (3, 3)


def test_damaged_lines_are_counted_and_the_rest_is_shown(run):
    path = run / "trajectories" / "1-h-1-00000.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 9, "\n\xff\xfe\n[]\n{"turns": "none"}\n' + b"[" * 100_000 + b"\n" + b'{"step": 1e99}\n')
    (run / "trajectories" / "8-h-8-00000.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-30])
    (run / "trajectories" / "9-h-9-00000.parquet").write_bytes(b"PAR1 nothing")
    write(path, [trajectory(5)], "a")
    found = cache(run)
    found.fill()
    client = TestClient(create_viewer([found]))
    assert len(asked(client, step=5)) == 1
    told = client.get("/api/runs").json()[0]
    assert told["damaged"] >= 8
    assert told["filled"]
    assert told["told"] is None


def test_hostile_text_comes_as_data_and_is_escaped_in_an_export(run):
    write(run / "trajectories" / "7-h-7-00000.jsonl", [trajectory(7, HOSTILE, answer=HOSTILE, metrics={"score": float("nan")})])
    client = TestClient(create_viewer([cache(run)]))
    answer = client.get("/api/list", params={"step": 7})
    assert answer.headers["content-type"] == "application/json"
    key = answer.json()["rows"][0]["key"]
    assert client.get("/api/trajectory", params={"key": key}).json()["record"]["question"] == HOSTILE
    assert client.get("/api/trajectory", params={"key": key}).json()["record"]["metrics"] == {"score": None}
    page = client.get("/export", params={"key": key})
    assert "<script>" not in page.text
    assert "<img" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "default-src 'none'" in page.text
    assert page.headers["content-disposition"] == f'attachment; filename="trajectory-{key}.html"'


def test_the_page_asks_nobody_else_and_makes_no_markup_of_data(run):
    client = TestClient(create_viewer([cache(run)], ["localhost", "testserver"]))
    for path in ("/", "/viewer.js", "/viewer.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://", "//cdn"):
            assert word not in text, (path, word)
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400  # DNS rebinding
    assert client.get("/docs").status_code == 404


def test_curves_and_alarms_of_all_stages_are_there(run):
    write(
        run / "metrics-1.jsonl",
        [{"step": step, "data": {"a/loss": step / 2, "bad": float("nan"), "text": "x"}} for step in (1, 2, 3)],
    )
    write(run / "metrics-2.jsonl", [{"step": 3, "data": {"a/loss": 9}}])  # a later attempt
    write(run / "second" / "metrics-3.jsonl", [{"step": 1, "data": {"a/loss": 1.0}}, {"data": 1}])
    alarm = {
        "step": 2,
        "rule": "entropy",
        "metric": "actor/entropy",
        "value": 0.1,
        "threshold": 0.2,
        "action": "warn",
        "message": "low",
    }
    write(run / "health.jsonl", [alarm])
    client = TestClient(create_viewer([cache(run)]))
    told = client.get("/api/metrics").json()
    assert told["names"] == ["a/loss"]
    assert told["alarms"] == [{"run": 0, "source": "", **alarm}]
    assert client.get("/api/curve", params={"name": "a/loss"}).json() == [
        {"run": 0, "source": "", "points": [[1, 0.5], [2, 1.0], [3, 9.0]]},
        {"run": 0, "source": "second", "points": [[1, 1.0]]},
    ]


def test_a_long_curve_is_thinned_and_keeps_its_end(run):
    write(run / "metrics-1.jsonl", [{"step": step, "data": {"loss": step}} for step in range(5001)])
    (found,) = TestClient(create_viewer([cache(run)])).get("/api/curve", params={"name": "loss"}).json()
    assert len(found["points"]) <= 1000
    assert found["points"][-1] == [5000, 5000]


def test_a_cache_is_used_again_and_made_anew_if_the_run_is_another(run):
    assert listed(cache(run), {})["total"] == 4
    again = Cache(run, run.parent / "cache")
    assert listed(again, {})["total"] == 4  # nothing has been read
    write(
        run / "trajectories" / "1-h-1-00000.jsonl",
        [trajectory(1, "from the beginning"), trajectory(1), trajectory(1), trajectory(1)],
    )
    again.fill()
    assert listed(again, {})["total"] == 5
    (run / "trajectories" / "2-h-2-00000.jsonl").unlink()
    again.fill()
    assert listed(again, {})["total"] == 4
    file = next((run.parent / "cache").glob("*.sqlite"))
    for path in (run.parent / "cache").glob("*.sqlite-*"):
        path.unlink()
    file.write_bytes(b"no database")
    assert listed(cache(run), {})["total"] == 4


def test_what_can_be_viewed_is_found_at_every_depth(tmp_path):
    for place in ("trajectories", "one/trajectories", "one/two/trajectories"):
        write(tmp_path / "run" / place / "1-h-1-00000.jsonl", [trajectory(1, place)])
    write(tmp_path / "run" / "data" / "train.jsonl", [{"id": 1, "question": "q", "golden_answers": []}])
    client = TestClient(create_viewer([cache(tmp_path / "run")]))
    assert client.get("/api/facets").json()["source"] == [["", 1], ["one", 1], ["one/two", 1]]
    assert listed(cache(tmp_path / "run" / "one" / "two" / "trajectories"), {})["total"] == 1
    baseline = {
        "id": "a",
        "n": 1,
        "question": "q",
        "golden_answers": ["a"],
        "answer": "b",
        "metadata": {},
        "metrics": {"em": 0.0},
    }
    file = write(tmp_path / "eval" / "direct.jsonl", [baseline])
    assert listed(cache(file), {})["rows"][0]["step"] is None
    assert listed(cache(file.parent), {"em": "0"})["total"] == 1


def test_nothing_to_view_is_told_in_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "--cache", str(tmp_path)]) == 1
    assert "no such file or directory" in capsys.readouterr().err
    assert main([str(tmp_path), "--cache", str(tmp_path)]) == 1
    assert "no trajectories in it" in capsys.readouterr().err
    file = write(tmp_path / "trajectories" / "a.jsonl", [trajectory(1)])
    with pytest.raises(ConfigError, match="--cache"):
        Cache(tmp_path, file)


def test_a_port_that_is_taken_is_told(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(run), "--port", str(port), "--cache", str(run.parent), "--no-browser"]) == 1
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_command_says_where_it_is_and_warns_of_other_hosts(run, host, warned):
    command = [sys.executable, "-m", "research_rl.cli", "view", str(run), "--host", host, "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--cache", str(run.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://{host}:")
    finally:
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert ("can read everything" in err) == warned
    assert "Traceback" not in err
