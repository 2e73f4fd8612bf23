"""`python -m evaluation rescore`: rewards for responses that somebody else recorded."""

from __future__ import annotations

import gzip
import json

import pytest

from evaluation.__main__ import main

GOOD = " a</think> <answer> Oslo </answer>"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rescore(source, out, *extra):
    fields = ["--response-field", "text", "--gold-field", "gold", "--out", str(out)]
    return main(["rescore", str(source), "--method", "r1_searcher", *fields, *extra])


def test_each_row_gets_its_score_and_components_and_keeps_the_rest(tmp_path, capsys):
    rows = [{"text": GOOD, "gold": "Oslo", "mine": 1}, {"text": "<think>" + GOOD, "gold": ["Bergen", "Oslo"], "mine": 2}]
    assert rescore(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "--preset", "qwen_zero") == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["mine"], row["score"]) for row in written] == [(1, 1.0), (2, -1.0)]
    assert written[1]["components"]["rule/think_closed_once"] == 0.0
    broken = {"not well formed": 1, "think_closed_once": 1}
    assert json.loads(capsys.readouterr().out) == {"n": 2, "mean_score": 0.0, "rows_that_break": broken}


def test_rows_of_one_question_are_a_group(tmp_path):
    search = "<external>q</external>\n<document>\n(1)x\n</document>\n"
    rows = [{"q": 1, "text": "\\boxed{Oslo}", "gold": "Oslo"}, {"q": 1, "text": search + "\\boxed{Oslo}", "gold": "Oslo"}]
    source = write(tmp_path / "in.jsonl", [*rows, {**rows[0], "q": 2}])
    command = ["rescore", str(source), "--method", "r1_searcher_pp", "--response-field", "text", "--gold-field", "gold"]
    assert main([*command, "--group-field", "q", "--out", str(tmp_path / "out.jsonl")]) == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scores == [1.5, 1.0, 1.0]


def test_a_compressed_file_is_read(tmp_path):
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": GOOD, "gold": "Oslo"}) + "\n")
    assert rescore(tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl") == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}', "row 1: no field 'gold'; it has: text"),
        ('{"text": [], "gold": "a"}', "text must be a text"),
        ('{"text": "a", "gold": []}', "gold must be a text or a list of texts"),
        ("[1]", "line 1: a JSON object is needed"),
        ("{", "line 1: not JSON"),
        pytest.param("[" * 100_000 + "]" * 100_000, "line 1: not JSON", id="deep"),
        pytest.param("9" * 5_000, "line 1: not JSON", id="long"),
        ("", "holds no row"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, capsys, content, told):
    (tmp_path / "in.jsonl").write_text(content)
    assert rescore(tmp_path / "in.jsonl", tmp_path / "out.jsonl") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_half_a_surrogate_pair_in_a_response_stays_one(tmp_path):
    rows = [{"text": GOOD + "\ud800", "gold": "Oslo"}]
    assert rescore(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl") == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == rows[0]["text"]


def test_a_file_that_is_no_gzip_is_told(tmp_path, capsys):
    (tmp_path / "in.jsonl.gz").write_text("{}")
    assert rescore(tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl") == 1
    assert "cannot be read as gzip of UTF-8" in capsys.readouterr().err


def test_unknown_methods_and_presets_are_told_with_the_valid_ones(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": GOOD, "gold": "Oslo"}])
    assert rescore(source, tmp_path / "out.jsonl", "--preset", "nonsense") == 1
    assert "stage2_paper" in capsys.readouterr().err
    assert (
        main(["rescore", str(source), "--method", "x", "--response-field", "text", "--gold-field", "gold", "--out", "o"]) == 1
    )
    assert "r1_searcher, r1_searcher_pp, research, search_o1, search_r1" in capsys.readouterr().err


def chat(*said):
    """Return a conversation in OpenAI's form: of a text, an answer; of (call, …), calls by name and JSON, all with a result."""
    messages = [{"role": "system", "content": "Search."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    for number, one in enumerate(said):
        if isinstance(one, str):
            messages.append({"role": "assistant", "content": one})
            continue
        ids = [f"{number}-{at}" for at in range(len(one))]
        calls = [
            {"id": id_, "type": "function", "function": {"name": n, "arguments": a}}
            for id_, (n, a) in zip(ids, one, strict=True)
        ]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": id_, "content": f"[p] of {id_}"} for id_ in ids]
    return messages


QUERY = ("search", '{"query": "Curie"}')
CONVERSATIONS = {
    "right": [[QUERY], "So \\boxed{Marie Curie}"],
    "several calls": [[QUERY, ("open", '{"id": "w1", "page": 2}')], [QUERY], "\\boxed{Curie}"],
    "an unknown tool": [[("find", '{"x": 1}')], "\\boxed{Marie Curie}"],
    "a wrong argument": [[("search", '{"query": 7}')], [QUERY], "\\boxed{Oslo}"],
    "no answer": [[QUERY], "I do not know."],
    "no search": ["\\boxed{Marie Curie}"],
    "thoughts": [[QUERY], "<think>her</think>\n\\boxed{Marie Curie}"],
}


@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation_in_openais_form_is_scored_as_the_trajectory_of_tokens(said, tmp_path):
    pytest.importorskip("tokenizers")
    from research_rl.methods import load_method
    from tests.unit.test_tool_calls import call, roll

    options = {"malformed_penalty": 0.2, "unsearched_penalty": 0.3, "format_reward": 0.1}
    written = [one if isinstance(one, str) else "\n".join(call(n, **json.loads(a)) for n, a in one) for one in said]
    method = load_method("tool_calls", **options)
    sampled, _, _ = roll(written, method=method)
    expected = method.reward(sampled, ["Marie Curie"])
    source = write(tmp_path / "in.jsonl", [{"text": chat(*said), "gold": "Marie Curie"}])
    command = ["rescore", str(source), "--method", "tool_calls", "--method-options", json.dumps(options)]
    assert main([*command, "--response-field", "text", "--gold-field", "gold", "--out", str(tmp_path / "out.jsonl")]) == 0
    [row] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["score"], row["components"]) == (expected.score, expected.components)
    read = method.read_messages(chat(*said))
    assert (read.question, read.searches, read.stop_reason) == ("Who?", sampled.searches, sampled.stop_reason)
    assert [turn.action for turn in read.turns] == [turn.action for turn in sampled.turns]


def test_a_thought_that_stands_apart_and_arguments_that_are_no_json_count_as_such():
    from research_rl.methods import load_method

    method = load_method("tool_calls")
    read = method.read_messages([{"role": "assistant", "content": "\\boxed{Oslo}", "reasoning": "\\boxed{Bergen}"}])
    assert (method.answer(read), read.turns[0].text.count("<think>")) == ("Oslo", 1)
    numbered = [{**one} for one in chat([QUERY], "\\boxed{Oslo}")]  # a call's id may be a number
    numbered[2]["tool_calls"][0]["id"] = numbered[3]["tool_call_id"] = 7
    assert method.read_messages(numbered).searches == ["Curie"]
    broken = method.read_messages(chat([("search", '{"query": ')], "\\boxed{Oslo}"))
    assert method.reward(broken, ["Oslo"]).components["malformed_call"] == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda messages: [{"role": "robot"}], "message 1 needs a role"),
        (lambda messages: [*messages, {"role": "user", "content": "And?"}], "message 6 is of the user"),
        (lambda messages: [*messages[:3], *messages[4:]], "before message 4, the calls ['0-0'] have no result"),
        (lambda messages: [*messages[:4], messages[3]], "message 5 answers the call '0-0'"),
        (lambda messages: [*messages[:3], {**messages[3], "tool_call_id": []}], "message 4 answers the call '[]'"),
        (
            lambda messages: [{**messages[2], "tool_calls": messages[2]["tool_calls"] * 2}],
            "message 1 makes two calls of one id: 0-0",
        ),
        (lambda messages: [{"role": "assistant", "content": 7}], "message 1 needs a text"),
        (lambda messages: [{"role": "assistant", "tool_calls": [{}]}], "message 1: tool_calls must be a list of"),
    ],
)
def test_a_conversation_that_cannot_be_is_told_with_its_row(tmp_path, capsys, change, told):
    source = write(tmp_path / "in.jsonl", [{"text": change(chat([QUERY], "\\boxed{x}")), "gold": "x"}])
    fields = ["--response-field", "text", "--gold-field", "gold", "--out", str(tmp_path / "out.jsonl")]
    assert main(["rescore", str(source), "--method", "tool_calls", *fields]) == 1
    error = capsys.readouterr().err
    assert f"row 1: text: {told}" in error
    assert main(["rescore", str(source), "--method", "r1_searcher", *fields]) == 1
    assert "reads a response as one text" in capsys.readouterr().err


def test_the_loop_of_the_documentation_makes_a_conversation_that_can_be_scored():
    from types import SimpleNamespace

    from research_rl.methods import load_method
    from tests.unit.test_docs import block_after

    converse = block_after("tool_calls.md", "<!-- loop -->")["converse"]
    said = iter([one for one in chat([QUERY, QUERY], "\\boxed{x}") if one["role"] == "assistant"])

    class Message(SimpleNamespace):
        def model_dump(self, exclude_none):
            return {name: value for name, value in self.told.items() if value is not None or not exclude_none}

    def create(**asked):
        told = next(said)
        calls = [SimpleNamespace(id=c["id"], function=SimpleNamespace(**c["function"])) for c in told.get("tool_calls", ())]
        return SimpleNamespace(choices=[SimpleNamespace(message=Message(told=told, tool_calls=calls))])

    method, asked = load_method("tool_calls"), []
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    prompt = method.prompt("Who?")
    found = converse(
        client, "m", prompt["messages"], prompt["tools"], lambda name, arguments: asked.append((name, arguments)) or "[p] y"
    )
    assert asked == [("search", {"query": "Curie"})] * 2
    assert method.reward(method.read_messages(found), ["x"]).score == 1.0
