"""Coverage: the matcher against the plain definition, the counts, and what is told of files that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preprocess.__main__ import main
from data_preprocess.answerable import searches_needed
from data_preprocess.coverage import Asked, Phrases
from data_preprocess.coverage_command import evidence_rank
from data_preprocess.demonstrations.evidence import task_of
from rag_serving.retrievers.base import Hit, Retriever
from research_rl.metrics import answer_rank, normalize_answer
from research_rl.types import Passage
from tests.servers import in_thread

WORDS = "the a an Oslo oslo's U.S. us New York new-york 1,984 – ’ é İ ǅ \x1c \u2028 x".split(" ")
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=8).map(" ".join)
PASSAGES = {
    "p1": "Orla Venn\nOrla Venn was born in the New York.",
    "p2": "Ports\nOslo and U.S. ports.",
    "p3": "Tram\nThe tramway of Novoslo.",
}
QUESTIONS = [
    {"question": "Where was Orla born?", "golden_answers": ["new york!", "NYC"], "metadata": {"supporting_ids": ["p1", "p2"]}},
    {"question": "Which tram?", "golden_answers": ["Oslo"], "metadata": {"supporting_ids": ["p3"]}},
    {"question": "Which town?", "golden_answers": ["Novos"], "metadata": {"supporting_ids": ["p1", "p9"]}},
    {"question": "Is it so?", "golden_answers": ["Yes"], "metadata": {"supporting_ids": ["p2"]}},
    {"question": "Whose ports?", "golden_answers": ["US", "the"], "metadata": {}},
]
TITLES = {"p1": "Orla Venn", "p2": "Ports", "p3": "Tram", "p9": "Nowhere"}


class Everything(Retriever):
    """Returns the first k of all passages, whatever is asked."""

    size = len(PASSAGES)

    def search(self, queries, k):
        return [[Hit(name, text, 1.0) for name, text in PASSAGES.items()][:k] for _ in queries]


@given(st.lists(texts, max_size=6), st.lists(texts, max_size=12))
def test_the_matcher_finds_what_the_plain_definition_finds_and_nothing_else(passages, answers):
    wanted = {answer: normalize_answer(answer) for answer in answers}
    matcher = Phrases(wanted.values())
    found = {phrase for passage in passages for phrase in matcher.take(normalize_answer(passage))}
    assert {answer for answer in answers if wanted[answer] in found} == {a for a in answers if answer_rank(passages, [a])}


@given(st.lists(texts, max_size=5), texts, st.integers(0, 4))
def test_what_is_cut_out_of_a_passage_at_white_space_is_found_in_it(before, answer, at):
    passage = " ".join([*before[:at], answer, *before[at:]])
    assert bool(answer_rank([passage], [answer])) == bool(normalize_answer(answer))


def test_an_answer_is_found_as_whole_words_only_and_its_rank_is_the_first_passage_that_has_it():
    assert answer_rank(["The tramway of Novoslo", "to Oslo.", "Oslo"], ["Oslo"]) == 2
    assert answer_rank(["x"], []) == answer_rank([], ["x"]) == answer_rank(["the", ""], ["the", "?"]) == 0


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Two question files (evidence by id, and by title), and the corpus in two files, one of them packed."""
    by_id = [{"id": str(number), **row} for number, row in enumerate(QUESTIONS)]
    by_title = [
        {**row, "metadata": {"supporting_titles": [TITLES[one] for one in row["metadata"].get("supporting_ids", ())]}}
        for row in by_id
    ]
    lines = [json.dumps({"id": name, "contents": text}) + "\n" for name, text in PASSAGES.items()]
    (tmp_path / "one.jsonl").write_text(lines[0])
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress("".join(["\n", *lines[1:]]).encode()))
    (tmp_path / "by_id.jsonl").write_text("".join(json.dumps(row) + "\n" for row in by_id))
    (tmp_path / "by_title.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in by_title).encode()))
    return {path.name.split(".")[0]: path for path in tmp_path.iterdir()}


def command(files: dict[str, Path], *more: str) -> list[str]:
    questions = [str(files["by_id"]), str(files["by_title"])]
    return ["coverage", "--questions", *questions, "--passages", str(files["one"]), str(files["two"]), "--workers", "1", *more]


def test_answers_and_evidence_are_counted_by_id_or_else_by_title(files, tmp_path, capsys):
    assert main(command(files, "--json", "--out", str(tmp_path / "F.json"))) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "F.json").read_text())
    assert told["passages"] == 3
    for found, by in zip(told["sets"], ("id", "title"), strict=True):
        assert found == {
            "file": str(files[f"by_{by}"]), "questions": 5, "yes_no": 1, "supporting_by": by,
            "answer_in_corpus": {"count": 3, "of": 4, "share": 0.75},  # Novos is no word of Novoslo
            "supporting_in_corpus": {"count": 3, "of": 4, "share": 0.75},
            "answer_in_supporting": {"count": 1, "of": 3, "share": 0.3333},
        }  # fmt: skip


def test_ids_of_another_corpus_do_not_count_where_titles_do(files, tmp_path, capsys):
    row = {"id": "1", "question": "Where?", "golden_answers": ["New York"],
           "metadata": {"supporting_ids": ["elsewhere-7"], "supporting_titles": ["Orla Venn"]}}  # fmt: skip
    files["by_id"].write_text(json.dumps(row) + "\n")
    assert main(command(files, "--json")) == 0
    found = json.loads(capsys.readouterr().out)["sets"][0]
    assert found["supporting_by"] == "title"
    assert found["supporting_in_corpus"]["count"] == found["answer_in_supporting"]["count"] == 1


def test_ids_that_are_no_passages_are_told_of(files, capsys):
    row = {"id": "1", "question": "Where?", "golden_answers": ["New York"], "metadata": {"supporting_ids": ["elsewhere-7"]}}
    files["by_id"].write_text(json.dumps(row) + "\n")
    with in_thread(Everything()) as url:
        assert main(command(files, "--json", "--retrieval-url", url, "--top-k", "3")) == 0
        found = json.loads(capsys.readouterr().out)["sets"][0]
    assert found["supporting_in_corpus"] == found["supporting_at"]["3"] == {"count": 0, "of": 1, "share": 0.0}
    assert main(command(files)) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("by_id.jsonl: no question has its supporting passages in the corpus")
    )


def test_a_title_that_the_corpus_lacks_is_missing_even_if_every_id_is_there(files, capsys):
    row = {"id": "1", "question": "Where?", "golden_answers": ["New York"],
           "metadata": {"supporting_ids": ["p1"], "supporting_titles": ["Orla Venn", "Nowhere"]}}  # fmt: skip
    files["by_id"].write_text(json.dumps(row) + "\n")
    assert main(command(files, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["sets"][0]["supporting_in_corpus"] == {"count": 0, "of": 1, "share": 0.0}


def test_the_service_is_asked_the_bare_questions(files, capsys):
    with in_thread(Everything()) as url:
        assert main(command(files, "--json", "--retrieval-url", url, "--top-k", "3,1")) == 0
        sets = json.loads(capsys.readouterr().out)["sets"]
        assert main(command(files, "--retrieval-url", url, "--top-k", "1,3")) == 0
    for found in sets:
        assert found["answer_at"]["1"] == {"count": 1, "of": 4, "share": 0.25}
        assert found["answer_at"]["3"] == {"count": 3, "of": 4, "share": 0.75}
        assert found["supporting_at"]["3"] == {"count": 3, "of": 4, "share": 0.75}
        assert list(found["answer_at"]) == ["1", "3"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("3 passages of ")
    assert shown[1].split() == ["by_id.jsonl", "by_title.jsonl.gz"]
    (line,) = [line for line in shown if line.startswith("top 3 of the bare question: an answer")]
    assert line.split()[-4:] == ["75.0", "%", "75.0", "%"]


def test_the_rank_of_the_evidence_is_that_of_its_last_passage():
    passages = [Passage(name, text, 1.0) for name, text in PASSAGES.items()]
    assert evidence_rank(Asked("q", ("x",), ("p2", "p1"), ()), passages, True) == 2
    assert evidence_rank(Asked("q", ("x",), ("p2", "p1"), ("Tram",)), passages, False) == 3
    assert evidence_rank(Asked("q", ("x",), ("p2", "p9"), ()), passages, True) == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("not json", "two.jsonl.gz, line 3: no passage"),
        ('{"id": "7"}', "two.jsonl.gz, line 3: no passage"),
        ("", "no passages at"),
    ],
)
def test_passages_that_cannot_be_read_are_told_by_file_and_line(files, capsys, bad, says):
    lines = gzip.decompress(files["two"].read_bytes()).decode().splitlines()
    files["two"].write_bytes(gzip.compress("\n".join([*lines[:2], bad, *lines[2:]]).encode()))
    if not bad:
        files["two"].unlink()
    assert main(command(files)) == 1
    assert says in capsys.readouterr().err


def test_questions_that_break_off_and_wrong_numbers_are_told(files, capsys):
    assert main(command(files, "--top-k", "3,0")) == 1
    assert "--top-k takes positive numbers, for example 1,3,5,10; got '3,0'" in capsys.readouterr().err
    files["by_title"].write_bytes(files["by_title"].read_bytes()[:60])
    assert main(command(files)) == 1
    assert "by_title.jsonl.gz cannot be read as gzip of UTF-8" in capsys.readouterr().err


def test_questions_that_the_service_cannot_help_with_are_left_out_on_record_and_yes_or_no_stays(tmp_path, capsys):
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(QUESTIONS)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["answerable", "--questions", str(tmp_path / "all.jsonl"), "--out", str(tmp_path / "out")]
    with in_thread(Everything()) as url:
        assert main([*options, "--retrieval-url", url, "--top-k", "1"]) == 0
        capsys.readouterr()
        for name in ("--top-k", "--searches"):
            assert main([*options, "--retrieval-url", url, name, "0"]) == 1
            assert f"{name} must be at least 1, got 0" in capsys.readouterr().err
    kept = [json.loads(line)["question"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert kept == ["Where was Orla born?", "Is it so?"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "train.dropped.jsonl").read_text().splitlines()]
    assert [(row["where"], row["reason"]) for row in dropped] == [
        (f"q{n}", "no answer in the first 1 passages") for n in (1, 2, 4)
    ]
    card = json.loads((tmp_path / "out" / "train.card.json").read_text())
    assert (card["rows_read"], card["questions"], card["top_k"]) == (5, 2, 1)


class Titles:
    """Finds the passage whose title is the query, and of a question the one that it names first."""

    PASSAGES = ("Samantha\nA song by Yoko Ono.", "Yoko Ono\nAn artist who married John Lennon.", "Uri\nA river.")

    def __init__(self):
        self.queries = []

    async def search(self, queries, top_k):
        self.queries += queries
        found = [
            [text for text in self.PASSAGES if text.partition("\n")[0].lower() in query.lower()][:top_k] for query in queries
        ]
        return [[Passage(text[:3], text) for text in texts] for texts in found]


def asked(identifier, question, answer, *titles):
    return task_of(
        {"id": identifier, "question": question, "golden_answers": [answer], "metadata": {"supporting_titles": list(titles)}}, "any", {}
    )  # fmt: skip


async def test_a_second_search_goes_for_what_the_first_one_named():
    tasks = [
        asked("bridge", "who married the writer of Samantha", "John Lennon", "Samantha", "Yoko Ono"),
        asked("at once", "who wrote Samantha", "Yoko Ono", "Samantha"),
        asked("unnamed", "what is the longest stream", "Uri", "Uri"),
        asked("nowhere", "who sang Samantha", "Nobody", "Samantha", "Uri"),
    ]
    assert await searches_needed(tasks, Titles().search, 1, 1) == {"bridge": 0, "at once": 1, "unnamed": 0, "nowhere": 0}
    service = Titles()
    assert await searches_needed(tasks, service.search, 1, 3) == {"bridge": 2, "at once": 1, "unnamed": 0, "nowhere": 0}
    assert service.queries[len(tasks) :] == ["Yoko Ono"]
