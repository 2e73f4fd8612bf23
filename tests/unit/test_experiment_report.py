"""The report of an experiment, as text and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from experiment.declaration import Declaration, QuestionSet
from experiment.report import write_report
from experiment.summary import summarize_run
from research_rl.training.trajectory_log import TrajectoryLog

TURNS = [
    {
        "text": "<think>I look it up.</think> <search>capital</search>",
        "observation": " <result>\nBonn\nA <b>town</b>.\n</result>",
    },
    {"text": "<answer>\\boxed{Bonn}</answer>", "observation": ""},
]


def row(number, source, em, **extra):
    return {
        "id": f"{source}/{number}", "n": 1, "question": f"{source} question {number}?", "golden_answers": ["Bonn"], "answer": "Bonn",
        "metadata": {"data_source": source, "hops": 1 + number % 2}, "sampled_tokens": 30, "generate_s": 1.5, "search_s": 0.1,
        "metrics": {"em": em, "f1": em, "searches": 1.0, "score": em}, **extra,
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    """The files that a finished run leaves, of 12 questions of two sets."""
    measured = tmp_path / "measured"
    measured.mkdir()
    ids = [(number, source) for source in ("nq", "ottqa") for number in range(6)]
    for name in ("start", "trained", "control_random", "baseline_direct"):
        rows = [row(number, source, float(name == "trained" or number == 0)) for number, source in ids]
        if not name.startswith("baseline"):
            rows = [{**one, "turns": TURNS, "stop_reason": "answered"} for one in rows]
            for one in rows:
                one["metrics"] |= {"well_formed": 1.0, "answered": 1.0}
        (measured / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        (measured / f"{name}.summary.json").write_text("{}")
    (measured / "unfinished.jsonl").write_text(json.dumps(row(0, "nq", 1.0)) + "\n")
    (measured / "bare_question.json").write_text(json.dumps({f"{source}/{number}": 1 for number, source in ids}))
    (tmp_path / "data").mkdir()
    counts = {"passages": 1000, "no_evidence": {"supporting": 7, "hold an answer": 30, "kept": 963}}
    (tmp_path / "data" / "counts.json").write_text(json.dumps(counts))
    (tmp_path / "model.json").write_text(json.dumps({"path": "m", "source": "directory"}))
    log = TrajectoryLog(tmp_path / "train" / "trajectories")
    metrics = {"em": 0.3, "f1": 0.4, "searches": 1.0, "retrieval_rate": 1.0, "well_formed": 1.0, "score": 0.5}
    for step in (1, 2):
        log.write({"step": step, "validate": False, "split": "train", "stage": "", "uid": "u", "metrics": metrics})
    timing = {"timing_s/step": 20.0, "timing_s/gen": 8.0, "timing_s/update_actor": 6.0}
    lines = [json.dumps({"step": step, "data": timing}) + "\n" for step in (1, 2)]
    (tmp_path / "train" / "metrics-1.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def declaration(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [ppo_trainer]\n")
    sets = {name: QuestionSet(f"{name}.jsonl") for name in ("nq", "ottqa")}
    return Declaration(sets, ["p"], train=str(recipe))


def written(declaration, run_dir):
    summary = summarize_run(declaration, run_dir, 1, {"train": 12.0})
    write_report(run_dir / "report.html", summary, run_dir, examples=10)
    return summary, (run_dir / "report.html").read_text()


def test_the_page_has_every_condition_the_curves_and_ten_pairs(run_dir, declaration):
    summary, page = written(declaration, run_dir)
    assert set(summary["sets"]) == {"nq", "ottqa"}
    assert set(summary["sets"]["nq"]["baselines"]) == {"direct"}  # what is not measured to its end does not count
    assert [step["step"] for step in summary["steps"]] == [1, 2]
    for text in ("control: random", "baseline: direct", "nq: 6 questions", "7 passages that support", "p = "):
        assert text in page
    assert page.count("<svg") == 2
    assert page.count('class="pair"') == 10
    assert sum("ottqa question" in part for part in page.split('class="question"')) == 5
    assert "A &lt;b&gt;town&lt;/b&gt;" in page
    assert not re.search(r"<(?:script|link|img|iframe)\b|src=|@import|url\((?!#)", page)


def test_an_experiment_without_training_has_a_page_too(run_dir, declaration):
    for path in (*run_dir.glob("measured/trained.*"), *run_dir.glob("measured/control*"), *run_dir.glob("measured/baseline*")):
        path.unlink()
    summary, page = written(Declaration(declaration.sets, ["p"], train=None), run_dir)
    assert "steps" not in summary
    assert "paired" not in summary["sets"]["nq"]
    assert "<svg" not in page


BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
def test_a_browser_without_a_network_shows_the_page_as_wide_as_a_window(run_dir, declaration):
    written(declaration, run_dir)
    page = run_dir / "report.html"
    probe = (
        "document.title = [document.documentElement.scrollWidth <= innerWidth, document.querySelectorAll('td').length].join()"
    )
    page.write_text(page.read_text() + f"<script>{probe}</script>")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,900",
         f"--user-data-dir={run_dir / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    title = re.search(r"<title>(\w+),(\d+)</title>", done.stdout)
    assert title is not None
    assert title[1] == "true"
    assert int(title[2]) > 50
