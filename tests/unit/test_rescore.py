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
    assert json.loads(capsys.readouterr().out) == {"n": 2, "mean_score": 0.0, "rows_that_break": {"think_closed_once": 1}}


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
        ("", "holds no row"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, capsys, content, told):
    (tmp_path / "in.jsonl").write_text(content)
    assert rescore(tmp_path / "in.jsonl", tmp_path / "out.jsonl") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


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
