"""An experiment's declaration, its data, its steps and its summary."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from experiment.__main__ import make_parser, run
from experiment.data import asked_questions, corpus, first_of_each, without_evidence
from experiment.declaration import Declaration, QuestionSet, check_files, read_declaration
from experiment.model import with_template
from experiment.running import Step, run_steps
from experiment.summary import one_set, queries, step_seconds
from quickstart.progress import Phases
from quickstart.training import follow_job, run_child
from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError
from research_rl.methods import load_method
from research_rl.metrics import answer_rank
from research_rl.training.jobs import Job
from research_rl.training.metric_files import logged
from research_rl.training.processes import last_word, versions_of
from research_rl.types import Search
from tests.models import tokenizer_like

ROOT = Path(__file__).parents[2]

SOUND = {
    "sets": {"nq": {"train": "nq_train.jsonl", "test": "nq_test.jsonl", "questions": 2}, "two": {"test": "two_test.jsonl"}},
    "passages": ["passages.jsonl"],
    "baselines": ["direct"],
}
QUIET = Console(quiet=True)


def declared(tmp_path, changes=(), **content):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({**SOUND, **content}))
    return read_declaration(path, changes)


def test_what_is_left_out_has_its_default_and_a_change_goes_before_the_file(tmp_path):
    one = declared(tmp_path, ["sets.nq.questions=7", "max_searches=1", "method_options.template=sys"])
    assert one.sets["nq"] == QuestionSet("nq_test.jsonl", "nq_train.jsonl", 7)
    assert (one.max_searches, one.top_k, one.method_options) == (1, 2, {"template": "sys"})
    assert one.train is one.cold_start is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"passage": []}, "unknown keys ['passage']; valid: sets, passages, model"),
        ({"passages": None}, "missing keys ['passages']"),
        ({"passages": []}, "at least one of each"),
        ({"sets": {"nq": {"tset": "a"}}}, "sets.nq: unknown keys ['tset']; valid: test, train"),
        ({"sets": {"nq": {"train": "a"}}}, "sets.nq: missing keys ['test']"),
        ({"sets": ["nq"]}, "sets: expected a mapping"),
        ({"sets": {"nq": {"test": "a", "questions": 0}}}, "sets.nq.questions must be a whole number of at least 1, got 0"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"controls": ["placebo"]}, "controls: unknown ['placebo']; valid: no_evidence, random, empty, closed_book"),
        ({"supervised_baselines": ["direct"]}, "trained with the recipe of the cold start, but the experiment has no cold_start"),
        ({"answerable_at": 0}, "answerable_at must be a whole number of at least 1, got 0"),
        ({"control_questions": 2.5}, "control_questions must be a whole number"),
        ({"baselines": ["few_shot"]}, "few_shot needs few_shot_prompt"),
        ({"method": "reserch"}, "reserch"),
        ({"method_options": {"preset": "best"}}, "preset='best' is unknown; valid: code, paper"),
        ({"sets": {"two": {"test": "a"}}, "train": "recipe.yaml"}, "no set has train questions"),
        ({"cold_start": {"recipe": "r.yaml", "demonstrations": {"two": 5}}}, "['two'] have no train questions; valid: nq"),
        ({"cold_start": {"recipe": "r.yaml"}}, "cold_start: missing keys ['demonstrations']"),
        (
            {"sets": {"a": {"test": "t", "train": "t", "share": 2}, "b": {"test": "t", "train": "t"}}},
            "give a share to every set with train questions (a, b), or to none",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_starts(tmp_path, content, told):
    with pytest.raises(ConfigError) as error:
        declared(tmp_path, **content)
    assert told in str(error.value)


def test_a_change_that_names_no_key_is_refused(tmp_path):
    for change in ("sets.nq.questions", "passages.deeper=1"):
        with pytest.raises(ConfigError, match="--set takes KEY=VALUE"):
            declared(tmp_path, [change])
    with pytest.raises(ConfigError, match="unknown keys"):
        declared(tmp_path, ["sets.nq.question=3"])


def test_an_experiment_has_the_keys_of_its_base_but_for_its_own(tmp_path):
    declared(tmp_path, max_searches=5, top_k=4)
    (tmp_path / "other.yaml").write_text("base: experiment.yaml\ntop_k: 1\nmethod_options: {template: sys}\n")
    one = read_declaration(tmp_path / "other.yaml", ["concurrency=3"])
    assert (one.max_searches, one.top_k, one.concurrency, one.method_options) == (5, 1, 3, {"template": "sys"})
    (tmp_path / "round.yaml").write_text("base: round.yaml\n")
    with pytest.raises(ConfigError, match="is its own base"):
        read_declaration(tmp_path / "round.yaml")
    (tmp_path / "lost.yaml").write_text("base: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"no experiment .*nowhere.yaml"):
        read_declaration(tmp_path / "lost.yaml")


def test_every_missing_file_is_named_at_once(tmp_path):
    one = declared(tmp_path, train="nowhere.yaml")
    (tmp_path / "nq_train.jsonl").touch()
    with pytest.raises(ConfigError) as error:
        check_files(one, tmp_path)
    assert all(name in str(error.value) for name in ("nq_test.jsonl", "two_test.jsonl", "passages.jsonl", "nowhere.yaml"))
    assert "nq_train.jsonl" not in str(error.value)


def test_settings_are_what_json_gives_back(tmp_path):
    one = declared(tmp_path, cold_start={"recipe": "r.yaml", "demonstrations": {"nq": 5}})
    settings = one.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["cold_start.demonstrations.nq"] == 5


def resumed(tmp_path, monkeypatch, saved, changes=()):
    """The settings that an experiment has saved once it is resumed; `saved` were left by an earlier version."""
    monkeypatch.setattr("experiment.__main__.run_steps", lambda *_: None)
    for name in ("nq_train.jsonl", "nq_test.jsonl", "two_test.jsonl", "passages.jsonl", "r.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    cold_start = {"recipe": "r.yaml", "demonstrations": {"nq": 5}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({**SOUND, "cold_start": cold_start}))
    path = tmp_path / "run" / "settings.json"
    path.parent.mkdir()
    path.write_text(json.dumps(saved))
    flags = [word for change in changes for word in ("--set", change)]
    port = ["--port", "0"]
    run(make_parser().parse_intermixed_args(["experiment.yaml", "--data", ".", "--run-dir", "run", *port, *flags]))
    return json.loads(path.read_text())


@pytest.fixture
def earlier(tmp_path):
    """The settings of a run by a version that did not know all of today's keys."""
    one = declared(tmp_path, cold_start={"recipe": "r.yaml", "demonstrations": {"nq": 5}})
    about = {"experiment": f"{tmp_path.name}/experiment.yaml", "seed": 1, "data": str(tmp_path), "overrides": []}
    unknown = ("cold_start.overrides", "answerable_searches", "sets.nq.share", "chat_template", "concurrency")
    return about | {name: value for name, value in one.settings().items() if name not in unknown}


def test_a_run_of_an_earlier_version_goes_on_where_new_keys_have_their_defaults_and_saves_them(tmp_path, monkeypatch, earlier):
    saved = resumed(tmp_path, monkeypatch, earlier)
    assert {name: saved[name] for name in set(saved) - set(earlier)} == {
        "cold_start.overrides": [], "answerable_searches": 1, "sets.nq.share": None, "chat_template": None, "concurrency": 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("cold_start.overrides=[optim.lr=1e-5]", "cold_start.overrides: with ['optim.lr=1e-5']"),
        ("answerable_searches=2", "answerable_searches was 1, now 2"),
        ("max_searches=2", "max_searches was 3, now 2"),
        ("baselines=[naive_rag]", "baselines: without ['direct'] and with ['naive_rag']"),
        (
            "controls=[closed_book,empty,random,no_evidence]",
            "controls was ['no_evidence', 'random', 'empty', 'closed_book'], now",
        ),
        ("method_options.template=sys", "method_options was {}, now None, method_options.template was None, now sys"),
    ],
)
def test_a_run_is_refused_where_a_key_has_another_value_than_it_had(tmp_path, monkeypatch, earlier, change, told):
    with pytest.raises(ConfigError) as error:
        resumed(tmp_path, monkeypatch, earlier, [change])
    assert f"({told}" in str(error.value)


def test_the_defaults_of_a_declaration_are_those_of_the_keys_that_have_one(tmp_path):
    one = declared(tmp_path, cold_start={"recipe": "r.yaml", "demonstrations": {"nq": 5}})
    assert json.loads(json.dumps(one.defaults())) == one.defaults()
    needed = {"passages", "sets.nq.test", "sets.two.test", "cold_start.recipe", "cold_start.demonstrations.nq"}
    assert set(one.settings()) - set(one.defaults()) == needed


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/experiment*.yaml")), ids=lambda path: path.stem)
def test_a_declaration_that_is_shipped_is_sound_and_its_files_are_there(monkeypatch, path):
    monkeypatch.chdir(ROOT)  # prompts are named from here
    one = read_declaration(path)
    assert Path(str(one.train)).is_file()
    assert one.cold_start is not None
    assert Path(one.cold_start.recipe).is_file()


@pytest.mark.parametrize("name", ["experiment", "experiment_gpu", "experiment_tool_calls"])
def test_the_recipe_of_the_experiment_speaks_the_same_protocol_by_itself(monkeypatch, name):
    monkeypatch.chdir(ROOT)  # prompts are named from here
    one = read_declaration(Path(f"recipes/wikipedia/{name}.yaml"))
    shared = yaml.safe_load((ROOT / "research_rl" / "config" / "wikipedia.yaml").read_text())
    recipe = yaml.safe_load(Path(str(one.train)).read_text())
    section = {**shared["research_rl"], **recipe["research_rl"]}
    for name in ("method", "method_options", "top_k", "max_searches", "max_turn_tokens"):
        assert section[name] == getattr(one, name), name
    assert section.get("max_observation_tokens") == one.max_observation_tokens
    assert {**shared["data"], **recipe.get("data", {})}["max_response_length"] == one.response_tokens
    assert one.cold_start is not None
    assert all(Path(name).is_file() for name in (one.cold_start.recipe, one.few_shot_prompt))


def test_the_worked_examples_are_in_the_methods_own_form(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_declaration(Path("recipes/wikipedia/experiment.yaml"))
    method = load_method(one.method, **one.method_options)
    blocks = Path(str(one.few_shot_prompt)).read_text().split("Question: ")[1:]
    assert len(blocks) == 2
    for block in blocks:
        trajectory = method.read(block.partition("\n")[2].strip())
        assert method.well_formed(trajectory)
        assert method.answer(trajectory)
        assert [turn.action for turn in trajectory.turns[:-1]] == [Search(turn.action.query) for turn in trajectory.turns[:-1]]


def write(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def question(identifier, text="who", answers=("x",), **metadata):
    return {"id": identifier, "question": text, "golden_answers": list(answers), "metadata": metadata}


def test_a_smaller_sample_of_test_questions_is_part_of_a_larger_one(tmp_path):
    write(tmp_path / "t.jsonl.gz", [question(f"q{number}", f"who is {number}") for number in range(50)])

    def ids(count):
        one = Declaration({"a": QuestionSet("t.jsonl.gz", questions=count)}, ["p"])
        return [row["id"] for row in asked_questions(one, tmp_path)]

    assert set(ids(10)) < set(ids(20))
    assert len(ids(None)) == 50
    assert ids(3)[0].startswith("a/q")
    assert ids(10) != [f"a/q{number}" for number in range(10)]
    with pytest.raises(DataError, match=r"has 50 questions, sets\.a\.questions asks for 51"):
        ids(51)


def test_two_corpora_with_one_id_are_refused(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"id": "1", "contents": name}])
    with pytest.raises(DataError, match="both have a passage '1'"):
        list(corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))


def passages(*contents):
    return [{"id": f"p{number}", "contents": text} for number, text in enumerate(contents)]


def kept(questions, *contents):
    counts: Counter[str] = Counter()
    found = [passage["id"] for passage in without_evidence(passages(*contents), questions, counts)]
    assert counts.total() == len(contents)
    return found, counts


def test_evidence_is_what_is_annotated_and_what_holds_an_answer():
    asked = [
        question("1", answers=["The Beatles"], supporting_ids=["p0"]),
        question("2", answers=["yes"], supporting_titles=["Mercury"]),
        question("3", answers=["7"]),
    ]
    found, counts = kept(
        asked, "Liverpool\nA city.", "Abbey Road\nAn album by the Beatles!", "Beat\nThe beat les.", "Mercury\nIt is hot, yes.",
        "Venus\nyes, 17 of them", "Seven\nThere are 7, no more.",
    )  # fmt: skip
    assert found == ["p2", "p4"]
    assert counts == {"supporting": 2, "hold an answer": 2, "kept": 2}


def test_titles_count_only_where_a_question_names_no_ids():
    asked = [question("1", answers=["zzz"], supporting_ids=["p0"], supporting_titles=["Mercury"])]
    assert kept(asked, "Mercury\nthe planet", "Mercury\nthe metal")[0] == ["p1"]


def test_if_nothing_is_left_it_says_so():
    with pytest.raises(DataError, match="no passage is left"):
        kept([question("1", answers=["a city"])], "Liverpool\nA city.")


WORDS = st.lists(st.sampled_from(["a", "new", "york", "york's", "7", "The", "U.S."]), min_size=1, max_size=6).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, min_size=1, max_size=4))
def test_what_is_kept_holds_no_answer_and_what_is_taken_out_holds_one(texts, answers):
    asked = [question("1", answers=answers)]
    try:
        found = kept(asked, *texts)[0]
    except DataError:
        found = []
    real = [answer for answer in answers if answer not in ("a", "The")]  # these normalise to nothing
    real = [answer for answer in real if answer_rank([answer], [answer]) and answer.replace("a", "").replace("The", "").strip()]
    assert found == [one["id"] for one in passages(*texts) if not (real and answer_rank([one["contents"]], real))]


def steps(tmp_path, done, fails=None):
    def run(name):
        def do():
            done.append(name)
            if name == fails:
                raise ConfigError("no")
            (tmp_path / name).touch()

        return do

    return [Step(name, name, tmp_path / name, run(name)) for name in ("one", "two", "three")]


def test_steps_are_done_once_in_order_and_go_on_where_one_failed(tmp_path):
    done: list[str] = []
    phases = Phases(tmp_path / "phases.json")
    run_steps(steps(tmp_path, done), phases, QUIET, until="one")
    assert done == ["one"]
    with pytest.raises(ConfigError, match="no"):
        run_steps(steps(tmp_path, done, fails="two"), phases, QUIET)
    run_steps(steps(tmp_path, done), phases, QUIET)
    assert done == ["one", "two", "two", "three"]
    assert set(json.loads((tmp_path / "phases.json").read_text())) == {"one", "two", "three"}
    run_steps(steps(tmp_path, done), phases, QUIET)
    assert len(done) == 4


def test_a_step_that_is_none_and_a_step_that_leaves_nothing_are_told(tmp_path):
    with pytest.raises(ConfigError, match="--until four: no such step; valid: one, two, three"):
        run_steps(steps(tmp_path, []), Phases(tmp_path / "p"), QUIET, until="four")
    with pytest.raises(ConfigError, match="the step idle has left no"):
        run_steps([Step("idle", "", tmp_path / "idle", lambda: None)], Phases(tmp_path / "p"), QUIET)


def test_a_child_that_fails_is_told_in_one_line_if_the_error_is_ours(tmp_path):
    def child(code):
        run_child(["python", "-c", code], tmp_path / "log", QUIET, lambda: "")

    child("print('DataError: of an earlier run')")
    with pytest.raises(DataError, match=r"^row 3$"):
        child("raise SystemExit('DataError: row 3')")
    with pytest.raises(ConfigError, match="ended with exit code 3"):
        child("print('no'); raise SystemExit(3)")


def test_a_job_has_both_kinds_of_variables_and_its_seconds_are_added_also_if_it_fails(tmp_path, monkeypatch):
    sleep, added = time.sleep, {}
    monkeypatch.setattr("quickstart.progress.time.sleep", lambda _: sleep(0.05))

    def follow(code):
        job = Job("", tmp_path, [sys.executable, "-c", code], {"OF_JOB": "1"})
        return follow_job(job, {"OF_RUN": "2"}, QUIET, added.__setitem__)

    assert follow("import os; assert os.environ['OF_JOB'] + os.environ['OF_RUN'] == '12'") == 0
    assert set(added) == {"engine start"}
    added.clear()
    with pytest.raises(ConfigError, match=r"^no model$"):
        follow("raise SystemExit('research_rl.errors.ConfigError: no model')")
    assert set(added) == {"engine start"}


def record(identifier, em, searches, observation="", **metadata):
    return {
        "id": identifier, "n": 1, "question": identifier, "golden_answers": ["Bonn"], "answer": "", "metadata": metadata,
        "turns": [{"text": "", "observation": observation}], "sampled_tokens": 3, "generate_s": 1.0, "search_s": 0.5,
        "metrics": {"em": em, "f1": em, "searches": float(searches), "well_formed": 1.0, "answered": 1.0},
    }  # fmt: skip


def test_the_summary_of_a_set_has_conditions_tests_and_what_the_queries_find():
    before = [
        record(str(number), 0.0, 1, "Bonn is it" if number < 5 else "bonnet", hops=1 + number % 2) for number in range(20)
    ]
    after = [record(str(number), float(number < 15), 2, "bonn", hops=1 + number % 2) for number in range(20)]
    ranks = {str(number): number for number in range(20)}
    found = one_set({"start": before, "trained": after, "control_random": before, "baseline_direct": before}, ranks, 2)
    assert (found["start"]["em"], found["trained"]["em"], found["trained"]["n"]) == (0.0, 0.75, 20)
    assert found["trained"]["intervals"]["em"][0] < 0.75 < found["trained"]["intervals"]["em"][1]
    assert set(found["controls"]) == {"random"}
    assert set(found["baselines"]) == {"direct"}
    against = found["baselines"]["direct"]["against_model"]
    assert (against["model_em"], against["difference"]) == (0.75, -0.75)
    assert found["paired"]["em"]["difference"] == 0.75
    assert found["paired"]["em"]["p"] < 0.01
    assert found["paired"]["searches"]["difference"] == 1.0
    assert found["queries"]["bare_question_recall@2"] == 0.1  # ranks 1 and 2 of 0 … 19
    assert found["queries"]["start"]["answer_recall"] == 0.25
    assert found["queries"]["trained"]["searches_by_hops"] == {"1": {"searches": 2.0, "n": 10}, "2": {"searches": 2.0, "n": 10}}
    json.dumps(found)


def test_a_control_is_compared_on_the_questions_that_it_was_asked():
    trained = [record(str(number), float(number < 5), 1) for number in range(20)]
    control = [record(str(number), 0.0, 1) for number in range(5)]
    found = one_set({"start": trained, "trained": trained, "control_empty": control}, {str(n): 0 for n in range(20)}, 2)
    figures = found["controls"]["empty"]
    assert (figures["n"], figures["against_model"]["model_em"], figures["against_model"]["difference"]) == (5, 1.0, -1.0)


def test_controls_are_asked_the_first_questions_of_every_set():
    rows = [question(f"{name}/{number}", data_source=name) for number in range(3) for name in "ab"]
    assert [row["id"] for row in first_of_each(rows, 2)] == ["a/0", "b/0", "a/1", "b/1"]
    assert list(first_of_each(rows, None)) == rows


def test_without_kinds_of_questions_none_are_told_apart():
    assert set(queries([record("1", 1.0, 1, "bonn")])) == {"answer_recall"}


def test_the_summary_says_where_an_answer_was_shown_first_and_what_came_of_it():
    def turn(name: str, observation: str) -> dict:
        return {
            "text": "",
            "observation": observation,
            "action": {"kind": "ToolCalls", "calls": [{"name": name, "arguments": {}}]},
        }

    last = {"text": "", "observation": "", "action": {"kind": "Answer", "text": "bonn"}}
    shown = {
        "searched": [turn("search", "bonn"), turn("open", "bonn"), last],
        "opened": [turn("search", "a town"), turn("open", "ulm"), turn("open", "bonn"), last],
        "nowhere": [turn("search", "a town"), last],
    }
    rows = [{**record(name, float(name == "opened"), 1, ""), "turns": turns} for name, turns in shown.items()]
    found = queries(rows)
    assert (found["opens"], found["opened"], found["searched_recall"]) == (1.0, 0.6667, 0.3333)
    assert found["em_by_where"] == {
        "searched": {"em": 0.0, "n": 1}, "opened": {"em": 1.0, "n": 1}, "nowhere": {"em": 0.0, "n": 1},
    }  # fmt: skip


def test_of_a_step_that_was_done_twice_the_last_attempt_counts(tmp_path):
    import os

    for number, seconds in ((1, 5.0), (2, 7.0)):
        path = tmp_path / f"metrics-{number}.jsonl"
        rows = [{"step": 0, "data": {"val": 1}}, {"step": 3, "data": {"timing_s/step": seconds, "timing_s/gen": 1.0}}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(path, (number, number))
    assert step_seconds(tmp_path) == [{"number": 3, "step": 7.0, "gen": 1.0}]


def test_a_model_gets_another_chat_template_and_keeps_everything_else(tmp_path):
    given = tokenizer_like("qwen2-base")
    given.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "weights").write_text("w")
    for _ in range(2):  # again over what is there
        made = with_template(tmp_path / "model", tmp_path / "other", str(ROOT / "research_rl" / "tools" / "chatml.jinja"))
    loaded = AutoTokenizer.from_pretrained(made)
    load_method("tool_calls").check_template(HFCodec(loaded, eos_ids=[loaded.convert_tokens_to_ids("<|im_end|>")]))
    assert loaded("Who was it?")["input_ids"] == given("Who was it?")["input_ids"]
    assert (made / "weights").read_text() == "w"
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == given.chat_template


def test_a_line_that_a_kill_has_cut_is_left_out_of_the_metrics(tmp_path):
    whole = {"step": 1, "data": {"timing_s/step": 2.0}}
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "metrics-1.jsonl").write_text(json.dumps(whole) + '\n{"step": 2, "da')
    assert logged(tmp_path) == [whole]


@pytest.mark.parametrize(("stderr", "told"), [("one\ntwo\n", "two"), ("", "it ended with exit code -9")])
def test_the_last_word_of_a_command_is_its_last_line_or_its_exit_code(stderr, told):
    assert last_word(subprocess.CompletedProcess([], -9, "", stderr)) == told


def test_versions_are_those_of_installed_packages():
    assert set(versions_of(["pytest", "no-such-package"])) == {"pytest"}
