"""Conversations that other programs recorded, in the viewer: who wrote what, which lines are left out and why, and hostile text."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

from fastapi.testclient import TestClient

from evaluation.__main__ import main as evaluation
from research_rl.errors import DataError
from research_rl.web.page import HIDDEN, TEMPLATES, visible
from research_rl.web.viewer import main
from research_rl.web.viewer_app import create_viewer
from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_recordings import record_of
from research_rl.web.viewer_store import listed, one, state
from tests.unit.test_rescore import QUERY, chat

HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\u202c \u2066x\u2069 \x9b31m </div>"


def write(path: Path, rows: list, end: str = "\n") -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end)
    return path


def cache(path: Path) -> Cache:
    found = Cache(path, path.parent / "cache")
    found.fill()
    return found


def test_a_conversation_is_shown_by_who_wrote_what(tmp_path):
    conversation = chat([QUERY, ("open", '{"id": "p"}')], "<think>so</think>\nMarie Curie")
    found = cache(write(tmp_path / "agent.jsonl", [{"messages": conversation}], end=""))  # no line feed at its end
    [row] = listed(found, {})["rows"]
    assert (row["question"], row["answer"], row["stop_reason"]) == ("Who?", "Marie Curie", "answered")
    assert (row["step"], row["validate"], row["score"], row["em"], row["golden_answers"]) == (None, None, None, None, "")
    shown = one(found, row["key"])
    assert shown is not None
    assert shown["record"]["prompt"] == "system: Search.\n\nuser: Who?"
    called, answered = shown["record"]["turns"]
    assert called["text"].count("<tool_call>") == 2
    assert '"query": "Curie"' in called["text"]
    assert called["observation"] == "[p] of 0-0\n\n[p] of 0-1"
    assert (answered["text"], answered["observation"]) == ("<think>so</think>\nMarie Curie", "")
    assert [call["name"] for call in called["action"]["calls"]] == ["search", "open"]
    for query, count in (("policy:Curie", 1), ("observation:Curie", 0), ("observation:of", 1), ("question:who", 1)):
        assert listed(found, {"q": query})["total"] == count, query


def test_question_answer_and_figures_are_those_of_the_row(tmp_path):
    given_ones = {
        "id": 7, "question": "Who won?", "answer": "Curie", "golden_answers": ["Marie Curie", "Curie"], "data_source": "nq",
        "metrics": {"em": 1.0}, "score": 0.5, "components": {"format": 0.0},
    }  # fmt: skip
    found = cache(write(tmp_path / "a.jsonl", [{"messages": chat("x"), **given_ones}]))
    [row] = listed(found, {"data_source": "nq", "em": "1", "min": "0.4"})["rows"]
    assert (row["question"], row["answer"], row["golden_answers"]) == ("Who won?", "Curie", "Marie Curie / Curie")
    assert (row["score"], row["em"], row["uid"]) == (0.5, 1.0, "7")
    assert listed(found, {"rule": "not well formed"})["total"] == 1


def test_what_rescore_writes_can_be_viewed_with_its_scores(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"messages": chat([QUERY], "\\boxed{Curie}"), "golden_answers": "Curie"}])
    fields = ["--response-field", "messages", "--gold-field", "golden_answers", "--out", str(tmp_path / "scored.jsonl")]
    assert evaluation(["rescore", str(source), "--method", "tool_calls", *fields]) == 0
    [row] = listed(cache(tmp_path / "scored.jsonl"), {})["rows"]
    assert (row["score"], row["golden_answers"]) == (1.0, "Curie")


BAD = [
    ("{", "not JSON"),
    ("[1]", "a JSON object is needed"),
    ({"text": "a"}, "no list 'messages'; its fields: 'text'"),
    ({"input": "a", "output": 1, "gts": 1, "score": 1, "step": 1}, "no list 'messages'; its fields: 'input', 'output'"),
    ({"prompt": [], "completion": [], "reward": 1}, "join the messages of prompt and completion to one list `messages`"),
    ({"custom_id": "1", "response": {}}, "join each answer with the `messages` of its request"),
    ({"messages": "a"}, "no list 'messages'"),
    ({"messages": [{"role": "robot"}]}, "message 1 needs a role"),
    ({"messages": [*chat("x"), {"role": "user", "content": "And?"}]}, "message 4 is of the user, after the assistant's"),
    ({"messages": [*chat([QUERY])[:-1], {"role": "assistant", "content": "x"}]}, "the calls ['0-0'] have no result"),
    ({"messages": chat("x"), "score": "good"}, "score must be a number, got 'good'"),
    ({"messages": chat("x"), "metrics": [1]}, "metrics must be an object of numbers"),
    ({"messages": chat("x"), "question": ["a"]}, "question must be a text"),
    ({"messages": chat("x"), "golden_answers": [["a"]]}, "not a trajectory: a text is needed"),
]


def test_lines_that_hold_none_are_counted_and_told_by_number_and_the_rest_is_shown(tmp_path, capsys):
    good = {"messages": chat("yes")}
    rows = ["{", "", good, *(row for row, _ in BAD[1:]), good]
    found = cache(write(tmp_path / "a.jsonl", rows))
    told = state(found)
    assert (told["trajectories"], told["damaged"]) == (2, len(BAD))
    expected = [(1, BAD[0][1]), *((number, why) for number, (_, why) in enumerate(BAD[1:], 4))]
    for line, (number, why) in zip(told["left_out"], expected, strict=True):
        assert line.startswith(f"line {number}: ")
        assert why in line
    assert f"a.jsonl: lines left out: {len(BAD)}, the first of them line 1: not JSON" in capsys.readouterr().err
    found.fill()  # it is not read again
    assert capsys.readouterr().err == ""
    assert state(cache(tmp_path / "a.jsonl"))["left_out"] == told["left_out"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", '{"text": "a"}\n', "line 1 has no list 'messages'; its fields: 'text'"),
        ("a.jsonl", "\n\n{", "line 3: not JSON"),
        ("a.jsonl", "", "it holds no line"),
        ("a.json", "[]", "its name ends neither in .jsonl nor in .jsonl.gz"),
        ("a.jsonl.gz", "{}", "cannot be read as gzip of UTF-8"),
    ],
)
def test_a_file_that_holds_none_is_refused_and_the_message_names_the_line(tmp_path, capsys, name, content, why):
    (tmp_path / name).write_text(content)
    assert main([str(tmp_path / name), "--cache", str(tmp_path / "cache")]) == 1
    error = capsys.readouterr().err
    assert why in error
    assert "each line with a list `messages`" in error


def test_a_file_that_changes_is_read_anew_and_a_packed_one_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": chat("one")}])
    found = cache(path)
    write(path, [{"messages": chat("two")}])  # as long as before
    found.fill()
    assert [row["answer"] for row in listed(found, {})["rows"]] == ["two"]
    chance = random.Random(0)
    lines = [json.dumps({"messages": chat(str(chance.getrandbits(2_000)))}).encode() for _ in range(300)]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n".join(lines)))
    assert listed(cache(packed), {})["total"] == 300
    packed.write_bytes(packed.read_bytes()[:-5_000])
    told = state(cache(packed))
    assert 100 < told["trajectories"] < 300
    [last] = told["left_out"]
    assert last.startswith(f"line {told['trajectories'] + 1}: ")
    assert "cannot be read as gzip" in last


def test_hostile_text_is_data_in_the_answers_and_named_and_escaped_in_an_export(tmp_path):
    messages = chat([("search", json.dumps({"query": HOSTILE}))], HOSTILE)
    messages[0]["content"] = messages[1]["content"] = messages[3]["content"] = HOSTILE
    found = cache(write(tmp_path / "a.jsonl", [{"messages": messages, "question": HOSTILE, "golden_answers": HOSTILE}]))
    client = TestClient(create_viewer([found]))
    [row] = client.get("/api/list").json()["rows"]
    record = client.get("/api/trajectory", params={"key": row["key"]}).json()["record"]
    assert record["turns"][0]["observation"] == HOSTILE == record["question"]
    page = client.get("/export", params={"key": row["key"]}).text
    assert "<script>" not in page
    assert not re.search(HIDDEN, page)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;⟨U+001B⟩[2J⟨U+001B⟩]0;owned⟨U+0007⟩ ⟨U+202E⟩gnp.exe⟨U+202C⟩") >= 6


def test_a_reason_that_is_told_in_the_terminal_has_no_escapes(tmp_path, capsys):
    call = {"id": "\x1b[2J\u202e", "function": {"name": "search", "arguments": "{}"}}
    rows = [{"messages": chat("x")}, {"messages": [{"role": "assistant", "tool_calls": [call, call]}]}]
    cache(write(tmp_path / "a.jsonl", rows))
    error = capsys.readouterr().err
    assert "makes two calls of one id: ⟨U+001B⟩[2J⟨U+202E⟩" in error
    assert "\x1b" not in error


def test_the_page_names_the_same_characters_as_an_export():
    [there] = re.findall(r"const HIDDEN = /(.*)/g;", (TEMPLATES / "viewer.js").read_text())
    assert there == HIDDEN


@given(st.text())
def test_text_is_named_and_otherwise_stays_as_it_is(text):
    shown = visible(text)
    assert not re.search(HIDDEN, shown)
    assert re.sub(r"⟨U\+([0-9A-F]{4})⟩", lambda found: chr(int(found[1], 16)), shown) == text or "⟨" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "robot"])},
    optional={"content": JSON, "tool_calls": JSON, "tool_call_id": JSON, "reasoning": JSON},
)


@given(
    st.dictionaries(st.sampled_from(["question", "answer", "score", "metrics", "golden_answers", "id"]), JSON),
    st.lists(MESSAGE | JSON),
)
def test_any_row_is_a_record_or_an_error_of_its_data(row, messages):
    try:
        record = record_of({**row, "messages": messages})
    except DataError:
        return
    assert isinstance(record["prompt"], str)
    assert all(isinstance(turn["text"], str) for turn in record["turns"])
