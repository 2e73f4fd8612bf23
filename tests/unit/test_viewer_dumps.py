"""Rollouts that verl's trainer wrote, in the viewer: as a file, as a directory, and with hostile text."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

from fastapi.testclient import TestClient

from research_rl.errors import ConfigError, DataError
from research_rl.web.page import HIDDEN
from research_rl.web.viewer_app import create_viewer
from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_dumps import frame_of
from research_rl.web.viewer_recordings import record_of
from research_rl.web.viewer_store import listed, one, state
from tests.unit.test_viewer import HOSTILE

PROMPT = "system\nYou search.\nuser\n{}\nassistant\n"


def dumped(question: str, step: object = 3, **changes) -> dict:
    row = {
        "input": PROMPT.format(question), "output": "<search>policyword</search> <result>seenword</result> Bob", "gts": ["Bob", "Rob"],
        "score": 0.5, "step": step, "uid": "a_0_0",
    }  # fmt: skip
    return row | changes


def write(path: Path, rows: list[dict], seconds_ago: float = 60.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moment = path.stat().st_mtime - seconds_ago
    os.utime(path, (moment, moment))
    return path


def cache(path: Path, tmp_path: Path) -> Cache:
    found = Cache(path, tmp_path / "cache")
    found.fill()
    return found


def test_a_file_of_verl_is_shown_and_nobody_is_said_to_have_written_the_response(tmp_path):
    extra = {"em": 1.0, "searches": 2, "acc": True, "reward/rule/one_box": 0.0, "well_formed": 0.0, "reason": "none"}
    rows = [
        dumped("Who is it?"),
        dumped("Where is it?", gts={"target": ["Oslo"]}, **extra),
        dumped("When?", gts=7),
        dumped("Why?", gts=None),
    ]
    found = cache(write(tmp_path / "3.jsonl", rows), tmp_path)
    first, second, third, fourth = listed(found, {})["rows"]
    assert (first["question"], first["golden_answers"], first["score"], first["step"]) == ("Who is it?", "Bob / Rob", 0.5, 3)
    assert (first["uid"], first["validate"], first["em"], first["stop_reason"]) == ("a_0_0", None, None, "unknown")
    assert (second["golden_answers"], second["em"], second["searches"]) == ("Oslo", 1.0, 2.0)
    assert [row["golden_answers"] for row in (third, fourth)] == ["7", ""]
    shown = one(found, first["key"])
    assert shown is not None
    assert shown["record"]["response"] == rows[0]["output"]
    assert shown["record"]["prompt"] == rows[0]["input"]
    assert "turns" not in shown["record"]
    for query, count in (("policyword", 4), ("policy:policyword", 0), ("observation:seenword", 0), ("question:where", 1)):
        assert listed(found, {"q": query})["total"] == count, query
    assert listed(found, {"rule": "one_box"})["total"] == listed(found, {"rule": "not well formed"})["total"] == 1


def test_a_directory_of_verl_is_shown_step_by_step_and_read_on(tmp_path):
    run = tmp_path / "rollouts"
    for step in (2, 10):
        write(run / f"{step}.jsonl", [dumped("Who?", step), dumped("Where?", step)])
    write(run / "notes.jsonl", [dumped("Who?")])
    found = cache(run, tmp_path)
    assert [row["step"] for row in listed(found, {})["rows"]] == [2, 2, 10, 10]
    write(run / "11.jsonl", [dumped("Who?", 11)], seconds_ago=0.0)
    found.fill()
    assert listed(found, {})["total"] == 4  # it may still be written to
    write(run / "11.jsonl", [dumped("Who?", 11)])
    found.fill()
    assert [row["step"] for row in listed(found, {}, order="last")["rows"]] == [11, 10, 10, 2, 2]
    (run / "2.jsonl").unlink()
    found.fill()
    assert listed(found, {})["total"] == 3


def test_a_directory_whose_only_file_is_being_written_says_to_try_again_and_a_servers_clock_holds_nothing_back(tmp_path):
    write(tmp_path / "run" / "1.jsonl", [dumped("Who?")], seconds_ago=1)
    with pytest.raises(ConfigError, match=r"1\.jsonl is being written, .* try again"):
        cache(tmp_path / "run", tmp_path)
    write(tmp_path / "run" / "1.jsonl", [dumped("Who?")], seconds_ago=-3600)
    assert listed(cache(tmp_path / "run", tmp_path), {})["total"] == 1


def test_a_score_that_is_none_is_told_and_a_file_of_neither_form_names_both(tmp_path):
    found = cache(
        write(tmp_path / "1.jsonl", [dumped("Who?"), dumped("Where?", score="good"), dumped("When?", step="x")]), tmp_path
    )
    assert state(found)["left_out"][0] == "line 2: score must be a number, got 'good'"
    assert state(found)["damaged"] == 2
    with pytest.raises(
        ConfigError, match=r"`messages`, or what verl writes to trainer.rollout_data_dir, each line with input, output, gts"
    ):
        Cache(write(tmp_path / "2.jsonl", [{"input": "a", "output": "b"}]), tmp_path / "cache")


@pytest.mark.parametrize(
    ("prompts", "frame"),
    [
        (
            ["system\nA\nuser\nWho?\nassistant\n", "system\nA\nuser\nWhere?\nassistant\n"],
            ("system\nA\nuser\n", "\nassistant\n"),
        ),
        (["Who?", "Where?"], ("", "")),
        (["a\nWho?"] * 3, ("", "")),
        (["a\n", "a\na\n"], ("a\n", "\n")),
    ],
)
def test_what_prompts_have_in_common_is_told_in_whole_lines(prompts, frame):
    assert frame_of(prompts) == frame


@given(st.lists(st.text(alphabet="ab\n", max_size=9), min_size=1, max_size=6))
def test_a_question_is_a_part_of_its_prompt_and_every_prompt_has_the_frame(prompts):
    frame = frame_of(prompts)
    assert all(prompt.startswith(frame[0]) and prompt.endswith(frame[1]) for prompt in prompts)
    for prompt in prompts:
        question = record_of(dumped("") | {"input": prompt}, frame)["question"]
        assert question in prompt


def test_hostile_text_is_data_and_an_export_names_and_escapes_it(tmp_path):
    hostile = f"{HOSTILE}\x1b[2J\u202e"
    named = {hostile: 1.0, f"reward/rule/{hostile}": 0.0, "uid": hostile, "split": hostile}
    found = cache(
        write(tmp_path / "1.jsonl", [dumped(hostile, output=hostile, gts=[hostile], **named), dumped("Who?")]), tmp_path
    )
    assert state(found)["damaged"] == 0
    client = TestClient(create_viewer([found]))
    key = client.get("/api/list").json()["rows"][0]["key"]
    assert client.get("/api/trajectory", params={"key": key}).json()["record"]["response"] == hostile
    page = client.get("/export", params={"key": key}).text
    assert "<script>" not in page
    assert "<img" not in page
    assert "does not tell apart" in page
    assert not re.search(HIDDEN, page)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(st.fixed_dictionaries(dict.fromkeys(("input", "output", "gts", "score", "step", "uid", "em"), JSON)))
def test_any_row_is_a_record_or_an_error_of_its_data(row):
    try:
        record = record_of(row)
    except DataError:
        return
    assert all(isinstance(record[name], str) for name in ("question", "prompt", "response", "uid"))
