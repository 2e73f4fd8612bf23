"""The report of several runs: table, tests, plots, examples, published figures."""

from __future__ import annotations

import json
import re

import pytest

from evaluation.__main__ import main
from evaluation.compare import Run, by_group, changed, pareto
from evaluation.statistics import Estimate


def record(identifier, em, searches=1.0, **metadata):
    return {
        "id": identifier, "n": 1, "question": f"Question <{identifier}>?", "golden_answers": ["a & b"], "answer": "x" if em else "<script>",
        "metadata": metadata, "sampled_tokens": 10, "prompt_tokens": 5, "generate_s": 0.5, "search_s": 0.25,
        "metrics": {"em": em, "f1": em, "cover_em_substring": em, "searches": searches},
        "turns": [{"text": "<b>thinking</b>", "observation": "found it", "action": {"kind": "Search"}, "passages": []}],
    }  # fmt: skip


def written(tmp_path, name, rights, **more):
    rows = [record(str(n), float(right), type="odd" if n % 2 else "even", hops=2, **more) for n, right in enumerate(rights)]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_page_and_the_markdown_compare_runs(tmp_path, capsys):
    weak, strong = (
        written(tmp_path, "weak", [0, 0, 0, 1] * 10),
        written(tmp_path, "strong", [0, 1, 1, 0] * 10, data_source="musique"),
    )
    assert main(["report", weak, f"better={strong}", "--out", str(tmp_path / "r.html"), "--examples", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n"], told["weak"]["em"], told["better"]["em"], told["better"]["seconds"]) == (40, 0.25, 0.5, 0.75)
    text = (tmp_path / "r.md").read_text()
    assert re.search(r"\| weak \| 25\.0 \[\d+\.\d, \d+\.\d\]", text)
    assert re.search(r"- better: 25\.0 \[.*\] points, p = 0\.\d+", text)
    assert "| even | 20 | 0.0 | 50.0 |" in text
    assert "Published" not in text  # the first run names no data set of a paper
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 2
    assert "<script>" not in page
    assert "&lt;b&gt;thinking" in page
    assert page.count('class="pair"') == 4  # two gained, two lost


def test_published_figures_stand_apart_with_their_conditions(tmp_path):
    run = written(tmp_path, "mine", [1, 0], data_source="musique")
    assert main(["report", run, "--out", str(tmp_path / "r.html"), "--protocol", "20 questions of a test"]) == 0
    text = (tmp_path / "r.md").read_text()
    assert "under other conditions (ours: 20 questions of a test)" in text
    assert "| musique | ReSearch | Qwen2.5-7B | em | 21.68 | 2417 | Wikipedia December 2018 |" in text
    assert "hotpotqa" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.jsonl", "short.jsonl"], "asked different questions: 1 and 2, 1 in both"),
        (["one.jsonl", "one.jsonl"], "two runs are called the same"),
        (["nowhere.jsonl"], "no run at"),
        (["one.jsonl", "--metrics", "em,rouge"], "has no metric 'rouge'; it has: em, f1"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "one", [1, 0])
    written(tmp_path, "short", [1])
    assert main(["report", *arguments, "--out", "r.html"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_several_rollouts_of_a_question_count_as_their_mean():
    run = Run("r", {"1": [record("1", 1.0), record("1", 0.0)], "2": [record("2", 0.0)]})
    assert run.values("em") == [0.5, 0.0]


def test_groups_that_tell_nothing_apart_are_left_out():
    run = Run("r", {"1": [record("1", 1.0, hops=0)], "2": [record("2", 0.0, hops=0)]})
    assert by_group([run], "hops", "em") == {}
    assert by_group([run], "type", "em") == {}


def test_what_was_gained_is_not_what_was_lost():
    first = Run("a", {"1": [record("1", 0.0)], "2": [record("2", 1.0)], "3": [record("3", 1.0)]})
    last = Run("b", {"1": [record("1", 1.0)], "2": [record("2", 0.0)], "3": [record("3", 1.0)]})
    assert [one["id"] for one, _ in changed(first, last, "em", 5, gained=True)] == ["1"]
    assert [one["id"] for one, _ in changed(first, last, "em", 5, gained=False)] == ["2"]


def test_the_same_figures_give_the_same_plot():
    row = {"name": "a", "em": Estimate(0.5, 0.4, 0.6), "searches": Estimate(1.0, 1.0, 1.0)}
    assert pareto([row], "em", "searches") == pareto([row], "em", "searches")
