"""The field's data sets in their original formats, odd rows included, and what becomes of them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preprocess import sources
from data_preprocess.__main__ import main
from data_preprocess.convert import answer_type
from data_preprocess.datasets import DATASETS
from data_preprocess.overlap import Overlap, jaccard, shingles
from data_preprocess.sources import BadRow, read_rows
from research_rl.errors import DataError
from research_rl.questions import read_questions

HOTPOT = [
    {"_id": "5a8b57f25542995d1e6f1371", "question": "Were Scott Derrickson and Ed Wood of the same nationality?", "answer": "yes",
     "type": "comparison", "level": "hard", "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0], ["Ed Wood", 2]],
     "context": [["Ed Wood", ["Edward Davis Wood Jr. was an American filmmaker.", " He made films."]]]},
    {"_id": "5a8c7595554299585d9e36b6", "question": "Which studio of R&amp;B  was\nfounded first?", "answer": " Stax &amp; Co. ",
     "type": "bridge", "level": "medium", "supporting_facts": [["R&amp;B", 1]], "context": []},
    {"_id": "5a8c7595554299585d9e36b6", "question": "Another question under the same id?", "answer": "Oslo"},  # type, level, facts missing
    {"_id": "5a8c0000000000000000aaaa", "question": "were scott derrickson and ed wood of the same nationality", "answer": "yes"},
    {"_id": "5a8c0000000000000000bbbb", "question": "Of the test set?"},
    {"_id": "5a8c0000000000000000cccc", "answer": "no question"},
    {"_id": "5a8c0000000000000000dddd", "question": "Is the answer a number?", "answer": 42},
    "not an object",
]  # fmt: skip
TWO_WIKI = [
    {"_id": "13f5ad2c088c11ebbd6fac1f6bf848b6", "type": "bridge_comparison", "question": "Are director of film A and B from one country?",
     "context": [], "entity_ids": "Q1_Q2", "supporting_facts": [["A", 0], ["Ann", 0], ["B", 0], ["Bob", 0]],
     "evidences": [["A", "director", "Ann"]], "answer": "no", "evidences_id": [], "answer_id": None},
    {"_id": "8813f87c0bdd11eba7f7acde48001122", "type": "compositional", "question": "Where was the director of film A born?",
     "supporting_facts": [["A", 0], ["Ann", 1]], "evidences": [], "answer": "United States", "answer_id": "Q30"},
]  # fmt: skip
MUSIQUE = [
    {"id": "2hop__482757_12019", "paragraphs": [{"idx": 0, "title": "Maputo", "paragraph_text": "…", "is_supporting": True},
     {"idx": 1, "title": "Paris", "paragraph_text": "…", "is_supporting": False}], "question": "When was it settled?",
     "question_decomposition": [{"id": 1, "question": "A >> b", "answer": "x", "paragraph_support_idx": 0}],
     "answer": "1850s", "answer_aliases": ["the 1850s", "1850s", ""], "answerable": True},
    {"id": "2hop__482757_12019", "paragraphs": [], "question": "When was it settled?", "question_decomposition": [],
     "answer": "1850s", "answer_aliases": [], "answerable": False},
    {"id": "3hop2__1_2_3", "paragraphs": [], "question": "Who, then?", "question_decomposition": [], "answer": "Ann", "answer_aliases": [],
     "answerable": True},
]  # fmt: skip
STRATEGY = [
    {"qid": "b8677742616fef051f00", "term": "Genghis Khan", "description": "…", "question": "Are many related to Genghis Khan?",
     "answer": True, "facts": ["…"], "decomposition": ["a", "b", "c"],
     "evidence": [[[["Genghis Khan-17"]], [["no_evidence"]], ["operation"]], [[["Julius Caesar-75", "Genghis Khan-20"]]]]},
    {"qid": "0", "question": "Is it so?", "answer": False},
    {"qid": "1", "question": "Is it otherwise?", "answer": "yes"},
    {"qid": "2", "question": "Of the test set?"},
]  # fmt: skip
NQ_OPEN = [{"question": "who got the first nobel prize in physics", "answer": ["Wilhelm Conrad Röntgen", "Röntgen"]}]
NQ_FULL = [
    {"example_id": 5655493461695504401, "question_text": "which is the most common use of mail", "document_title": "Mail",
     "document_text": "<P> It is marketing by post </P> today", "annotations": [
         {"yes_no_answer": "NONE", "long_answer": {}, "short_answers": [{"start_token": 3, "end_token": 6}]}]},
    {"example_id": 2, "question_text": "so", "document_text": "x", "annotations": [{"yes_no_answer": "YES", "short_answers": []}]},
    {"example_id": 3, "question_text": "too long", "document_text": "a b c d e f g", "annotations": [
        {"yes_no_answer": "NONE", "short_answers": [{"start_token": 0, "end_token": 6}]}]},
    {"example_id": 4, "question_text": "of the dev file", "document_tokens": [
        {"token": "<P>", "html_token": True}, {"token": "Oslo", "html_token": False}], "annotations": [
        {"yes_no_answer": "NONE", "short_answers": [{"start_token": 0, "end_token": 2}]}]},
]  # fmt: skip
TRIVIA = {"Data": [
    {"Question": "Which Lloyd Webber musical premiered in 1993?", "QuestionId": "tc_33", "QuestionSource": "http://x", "Answer": {
        "Value": "Sunset Boulevard", "Aliases": ["Sunset Blvd", "West Sunset Boulevard"], "NormalizedAliases": ["sunset blvd"],
        "NormalizedValue": "sunset boulevard", "Type": "WikipediaEntity"}, "EntityPages": [{"Title": "Andrew Lloyd Webber"}]},
    {"Question": "Of the test set?", "QuestionId": "tc_1"},
], "Domain": "Web", "Version": 1.0}  # fmt: skip
POPQA = [
    ["id", "subj", "prop", "obj", "s_wiki_title", "question", "possible_answers"],
    ["4222362", "George Rankin", "occupation", "politician", "George Rankin", "What is George Rankin's occupation?",
     '["politician", "political leader", "pol"]'],
    ["1", "A", "occupation", "b", "A", "What is A's occupation?", "politician"],
]  # fmt: skip


def written(path, rows, how):
    if how == "array":
        path.write_text(json.dumps(rows, indent=1))
    elif how == "lines":
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=how).writerows(rows)
    return path


def convert(tmp_path, dataset, path, *options, split="train"):
    assert main([dataset, "--input", f"{split}={path}", "--out", str(tmp_path / "out"), *map(str, options)]) == 0
    card = json.loads((tmp_path / "out" / f"{split}.card.json").read_text())
    return list(read_questions(tmp_path / "out" / f"{split}.jsonl")), card


def dropped(tmp_path, split="train"):
    lines = (tmp_path / "out" / f"{split}.dropped.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("how", ["array", "lines"])
def test_hotpotqa(tmp_path, capsys, how):
    rows, card = convert(tmp_path, "hotpotqa", written(tmp_path / "hotpot.json", HOTPOT, how))
    assert [row["golden_answers"] for row in rows] == [["yes"], ["Stax & Co."], ["Oslo"]]
    assert rows[1]["question"] == "Which studio of R&B was founded first?"
    assert [row["id"] for row in rows] == ["5a8b57f25542995d1e6f1371", "5a8c7595554299585d9e36b6", "5a8c7595554299585d9e36b6#2"]
    assert rows[0]["metadata"] == {
        "data_source": "hotpotqa", "type": "comparison", "hops": 2, "level": "hard",
        "supporting_titles": ["Scott Derrickson", "Ed Wood"], "supporting_ids": [], "difficulty": "",
    }  # fmt: skip
    assert card["rows_read"] == 8
    assert card["dropped"] == {"malformed": 3, "asked twice": 1, "no answer": 1}
    assert card["answer_types"] == {"text": 2, "yes/no": 1}
    assert (card["questions"], card["ids_renamed"]) == (3, 1)
    assert len(card["source"]["sha256"]) == 64
    told = capsys.readouterr().err
    malformed = [drop for drop in dropped(tmp_path) if drop["reason"] == "malformed"]
    for drop, line in zip(malformed, [6, 7, 8] if how == "lines" else [60, 64, 69], strict=True):
        assert f"hotpot.json, line {line}" in drop["where"]
        assert f"{drop['where']}: malformed: {drop['detail']}" in told
    assert "no field 'question'" in told
    assert "expected a text, got 42" in told


def test_the_lines_of_a_json_array_are_counted(tmp_path):
    path = written(tmp_path / "hotpot.json", HOTPOT, "array")
    text = path.read_text().splitlines()
    for row in read_rows(str(path)):
        number = int(row.where.split("line ")[1].split(",")[0])
        assert text[number - 1].strip().startswith("{" if not isinstance(row, BadRow) else '"not an object"')


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(), st.lists(st.text(max_size=3))))),
    st.integers(1, 60),
    st.sampled_from([None, 1]),
)
def test_an_array_is_read_the_same_however_it_is_cut(rows, chunk, indent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        file = io.StringIO(json.dumps(rows, indent=indent, ensure_ascii=False), newline="")
        assert [row.fields for row in sources._array(Path("x"), file, 1)] == rows


def test_an_evaluation_split_keeps_what_is_asked_twice(tmp_path):
    rows, card = convert(tmp_path, "hotpotqa", written(tmp_path / "hotpot.json", HOTPOT, "array"), split="dev")
    assert len(rows) == 4
    assert "asked twice" not in card["dropped"]


def test_parquet_and_json_lines_say_the_same(tmp_path):
    rows, _ = convert(tmp_path, "musique", written(tmp_path / "m.jsonl", MUSIQUE, "lines"))
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    for row, verl in zip(rows, table, strict=True):
        info, metadata = verl["extra_info"], row["metadata"]
        assert verl["data_source"] == metadata["data_source"] == "musique"
        assert verl["prompt"] == [{"role": "user", "content": row["question"]}]
        assert verl["reward_model"] == {"style": "rule", "ground_truth": row["golden_answers"]}
        assert (info["id"], info["question"], info["split"]) == (row["id"], row["question"], "train")
        assert {
            name: info[name] for name in ("type", "hops", "level", "supporting_titles", "supporting_ids", "difficulty")
        } == {name: value for name, value in metadata.items() if name != "data_source"}


def test_what_was_converted_converts_to_itself(tmp_path):
    for dataset, rows in (("musique", MUSIQUE), ("hotpotqa", HOTPOT)):
        once, _ = convert(tmp_path, dataset, written(tmp_path / "x.jsonl", rows, "lines"))
        first = (tmp_path / "out" / "train.parquet").read_bytes()
        (tmp_path / "again.jsonl").write_text((tmp_path / "out" / "train.jsonl").read_text())
        twice, card = convert(tmp_path, "flashrag", tmp_path / "again.jsonl")
        assert once == twice
        assert card["dropped"] == {}
        assert (tmp_path / "out" / "train.parquet").read_bytes() == first


def test_musique_leaves_the_unanswerable_out_and_keeps_aliases(tmp_path):
    rows, card = convert(tmp_path, "musique", written(tmp_path / "m.jsonl", MUSIQUE, "lines"))
    assert rows[0]["golden_answers"] == ["1850s", "the 1850s"]
    assert rows[0]["metadata"]["supporting_titles"] == ["Maputo"]
    assert [(row["metadata"]["type"], row["metadata"]["hops"]) for row in rows] == [("2hop", 2), ("3hop2", 3)]
    assert card["dropped"] == {"unanswerable": 1}
    assert card["golden_answers"] == {"one": 1, "with aliases": 1}


def test_2wikimultihopqa_takes_aliases_from_their_file(tmp_path):
    aliases = [{"Q_id": "Q30", "aliases": ["USA", "United States"], "demonyms": ["American"]}]
    names = written(tmp_path / "id_aliases.json", aliases, "lines")
    source = written(tmp_path / "train.json", TWO_WIKI, "array")
    rows, card = convert(tmp_path, "2wikimultihopqa", source, "--aliases", names)
    assert [row["golden_answers"] for row in rows] == [["no"], ["United States", "USA", "American"]]
    assert [row["metadata"]["hops"] for row in rows] == [4, 2]
    assert card["types"] == {"bridge_comparison": 1, "compositional": 1}


def test_strategyqa_answers_yes_or_no(tmp_path):
    rows, card = convert(tmp_path, "strategyqa", written(tmp_path / "s.json", STRATEGY, "array"))
    assert [row["golden_answers"] for row in rows] == [["yes"], ["no"]]
    assert rows[0]["metadata"]["supporting_titles"] == ["Genghis Khan", "Julius Caesar"]
    assert rows[0]["metadata"]["hops"] == 3
    assert card["dropped"] == {"malformed": 1, "no answer": 1}


def test_natural_questions_in_its_three_forms(tmp_path):
    rows, _ = convert(tmp_path, "nq", written(tmp_path / "NQ-open.train.jsonl", NQ_OPEN, "lines"))
    assert (rows[0]["id"], rows[0]["golden_answers"]) == ("train-1", ["Wilhelm Conrad Röntgen", "Röntgen"])
    rows, card = convert(tmp_path, "nq", written(tmp_path / "v1.0-simplified_nq-train.jsonl", NQ_FULL, "lines"))
    assert [row["golden_answers"] for row in rows] == [["marketing by post"], ["yes"], ["Oslo"]]
    assert (rows[0]["id"], rows[0]["metadata"]["supporting_titles"]) == ("5655493461695504401", ["Mail"])
    assert card["dropped"] == {"no short answer of at most 5 tokens": 1}
    table = [["who is it", "['Ann', \"Bob's\"]"], ["what is it", "['x']"]]  # DPR's, without a header
    rows, _ = convert(tmp_path, "nq", written(tmp_path / "nq-test.qa.csv", table, "\t"))
    assert [row["golden_answers"] for row in rows] == [["Ann", "Bob's"], ["x"]]


def test_triviaqa_original_and_as_the_hub_has_it(tmp_path):
    rows, card = convert(tmp_path, "triviaqa", written(tmp_path / "unfiltered-web-dev.json", TRIVIA, "array"))
    assert rows[0]["golden_answers"] == ["Sunset Boulevard", "Sunset Blvd", "West Sunset Boulevard"]
    assert rows[0]["metadata"]["supporting_titles"] == ["Andrew Lloyd Webber"]
    assert card["dropped"] == {"no answer": 1}
    hub = {
        "question": "Which?",
        "question_id": "tc_33",
        "answer": {"value": "A", "aliases": ["B"]},
        "entity_pages": {"title": ["T"]},
    }
    question = DATASETS["triviaqa"].read(hub)
    assert (question.golden_answers, question.supporting_titles) == (("A", "B"), ("T",))


def test_hotpotqa_as_the_hub_has_it():
    row = {
        "id": "1",
        "question": "Q?",
        "answer": "A",
        "type": "bridge",
        "level": "easy",
        "supporting_facts": {"title": ["T", "U"], "sent_id": [0, 1]},
    }
    assert DATASETS["hotpotqa"].read(row).supporting_titles == ("T", "U")


def test_popqa_and_bamboogle_are_tables(tmp_path):
    rows, card = convert(tmp_path, "popqa", written(tmp_path / "test.tsv", POPQA, "\t"))
    assert rows[0]["golden_answers"] == ["politician", "political leader", "pol"]
    assert rows[0]["metadata"]["type"] == "occupation"
    assert card["dropped"] == {"malformed": 1}
    assert dropped(tmp_path)[0]["where"].endswith("test.tsv, line 3")
    table = [
        ["Question", "Answer"],
        ['Who was president of the U.S. when it,\nin "1928", was found?', "Calvin Coolidge"],
        ["One column"],
    ]
    rows, card = convert(tmp_path, "bamboogle", written(tmp_path / "Bamboogle.csv", table, ","))
    assert rows[0]["question"] == 'Who was president of the U.S. when it, in "1928", was found?'
    assert (rows[0]["id"], card["dropped"]) == ("train-1", {"malformed": 1})


def test_r1_searchers_stage_files(tmp_path):
    stage = [
        {"idx": 7, "question": "Q?", "answer": "A", "pred_anses": [""]},
        {"idx": 8, "question": "R?", "answer": ["B", "C"]},
    ]
    rows, _ = convert(tmp_path, "r1_searcher", written(tmp_path / "stage_1.jsonl", stage, "lines"), "--data-source", "stage1")
    assert [(row["id"], row["golden_answers"], row["metadata"]["data_source"]) for row in rows] == [
        ("7", ["A"], "stage1"), ("8", ["B", "C"], "stage1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_are_read(tmp_path, suffix, pack):
    path = tmp_path / f"m.jsonl{suffix}"
    path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in MUSIQUE).encode()))
    assert len(convert(tmp_path, "musique", path)[0]) == 2


def test_strict_stops_at_the_first_malformed_row_and_writes_nothing(tmp_path, capsys):
    path = written(tmp_path / "hotpot.json", HOTPOT, "lines")
    assert main(["hotpotqa", "--input", str(path), "--out", str(tmp_path / "out"), "--strict"]) == 1
    assert "line 6: malformed: no field 'question'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_data_set_is_told(tmp_path, capsys):
    path = written(tmp_path / "m.jsonl", MUSIQUE, "lines")
    assert main(["triviaqa", "--input", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "none of 3 rows is one of triviaqa" in capsys.readouterr().err


def test_an_array_that_breaks_off_is_told_with_the_line_and_nothing_is_written(tmp_path, capsys):
    path = written(tmp_path / "hotpot.json", HOTPOT, "array")
    path.write_text(path.read_text()[:700])
    assert main(["hotpotqa", "--input", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "the JSON array is broken after row 1, at line 32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [
    ("q.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 500)[:-20]),
    ("q.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 500)[:20] + b"\x00" * 40),
    ("q.parquet", b"PAR1 and nothing else"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_to_its_end_is_told_by_its_name(broken, tmp_path, capsys):
    (tmp_path / broken[0]).write_bytes(broken[1])
    assert main(["flashrag", "--input", str(tmp_path / broken[0]), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"data_preprocess: {tmp_path / broken[0]}")
    assert "Traceback" not in told


def test_a_line_nested_too_deeply_is_a_malformed_row(tmp_path, capsys):
    deep = "[" * 100_000
    (tmp_path / "q.jsonl").write_text(f'{{"id": {deep}\n{{"id": "1", "question": "Where?", "golden_answers": ["Oslo"]}}\n')
    (tmp_path / "array.json").write_text(deep)
    assert main(["flashrag", "--input", str(tmp_path / "array.json"), "--out", str(tmp_path / "out")]) == 1
    assert "array.json, line 1: nested too deeply" in capsys.readouterr().err
    assert main(["flashrag", "--input", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "train.card.json").read_text())["dropped"] == {"malformed": 1}


def test_neither_file_nor_hub_id_is_told(tmp_path, capsys):
    assert main(["hotpotqa", "--input", "nowhere.json", "--out", str(tmp_path)]) == 1
    assert "no file nowhere.json" in capsys.readouterr().err


def test_a_hub_id_is_loaded_by_datasets(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(source, config, split):
        asked.append((source, config, split))
        return datasets.Dataset.from_list(NQ_OPEN)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    arguments = [
        "--input",
        "train=org/nq_open",
        "--input",
        "dev=org/nq_open",
        "--input",
        "test=org/nq_open@validation[:10]",
        "--config",
        "c",
    ]
    assert main(["nq", *arguments, "--out", str(tmp_path)]) == 1  # all the same question: nothing is left to train on
    assert asked == [("org/nq_open", "c", "validation"), ("org/nq_open", "c", "validation[:10]"), ("org/nq_open", "c", "train")]
    card = json.loads((tmp_path / "dev.card.json").read_text())
    assert card["source"] == {"hub": "org/nq_open", "config": "c", "split": "validation"}


def many(count):
    return [
        {"question": f"who wrote the book number {n} of the series {n * 7}", "answer": [f"author {n}"]} for n in range(count)
    ]


def test_train_never_asks_what_the_evaluation_asks(tmp_path):
    test = written(
        tmp_path / "test.jsonl",
        [many(3)[0], {"question": "Who wrote The book number 2 of a series 14?", "answer": ["x"]}],
        "lines",
    )
    train = written(tmp_path / "train.jsonl", many(20), "lines")
    out = tmp_path / "out"
    assert main(["nq", "--input", f"train={train}", "--input", f"test={test}", "--out", str(out)]) == 0
    assert len(list(read_questions(out / "train.jsonl"))) == 18
    assert len(list(read_questions(out / "test.jsonl"))) == 2
    other = tmp_path / "excluded.jsonl"
    other.write_text(
        json.dumps({"id": "1", "question": "so who wrote the book number 5 of the series 35", "golden_answers": ["x"]}) + "\n"
    )
    rows, card = convert(tmp_path, "nq", train, "--exclude", other)
    assert len(rows) == 19
    assert card["dropped"] == {"nearly the same as an excluded question": 1}
    assert len(convert(tmp_path, "nq", train, "--exclude", other, "--near", 0)[0]) == 20


def test_samples_and_held_out_questions_are_the_same_for_a_seed_and_disjoint(tmp_path):
    source = written(tmp_path / "train.jsonl", many(50), "lines")
    options = ("--hold-out", "dev=10", "--sample", 20, "--seed", 3)
    train, card = convert(tmp_path, "nq", source, *options)
    dev = list(read_questions(tmp_path / "out" / "dev.jsonl"))
    assert (len(train), len(dev), card["not_drawn"]) == (20, 10, 20)
    assert not {row["id"] for row in train} & {row["id"] for row in dev}
    assert convert(tmp_path, "nq", source, *options)[0] == train
    assert convert(tmp_path, "nq", source, *options[:-1], 4)[0] != train


def test_limits_by_length_and_kind_of_answer(tmp_path):
    rows = [
        {"question": "is it so", "answer": ["yes"]},
        {"question": "a question of far too many words to be asked", "answer": ["x"]},
        {"question": "which one", "answer": ["an answer of five words"]},
        {"question": "which other one", "answer": ["x"]},
    ]
    options = ("--no-yes-no", "--max-question-words", 5, "--max-answer-words", 4)
    left, card = convert(tmp_path, "nq", written(tmp_path / "x.jsonl", rows, "lines"), *options)
    assert [row["question"] for row in left] == ["which other one"]
    assert card["dropped"] == {"yes/no answer": 1, "question longer than 5 words": 1, "answer longer than 4 words": 1}


def test_more_questions_than_there_are_is_an_error(tmp_path, capsys):
    source = written(tmp_path / "train.jsonl", many(5), "lines")
    assert main(["nq", "--input", str(source), "--out", str(tmp_path / "o"), "--sample", "6"]) == 1
    assert "6 questions are to be drawn (--hold-out, --sample), and 5 are there" in capsys.readouterr().err


def mixed(tmp_path, *options):
    for name, count in (("a", 30), ("b", 12)):
        rows = [{**row, "question": f"{name} {row['question']}"} for row in many(count)]
        rows += [{"question": "asked in both", "answer": ["x"]}]
        assert main(["nq", "--input", str(written(tmp_path / f"{name}.jsonl", rows, "lines")), "--data-source", name,
                     "--out", str(tmp_path / name)]) == 0  # fmt: skip
    parts = ["--part", f"{tmp_path}/a/train.jsonl=2", "--part", f"{tmp_path}/b/train.jsonl=1"]
    return main(["mix", *parts, "--out", str(tmp_path / "mix"), *options])


def test_a_mix_keeps_its_ratio_its_sources_and_asks_nothing_twice(tmp_path):
    assert mixed(tmp_path) == 0
    rows = list(read_questions(tmp_path / "mix" / "train.jsonl"))
    assert [sum(row["metadata"]["data_source"] == name for row in rows) for name in "ab"] == [24, 12]
    assert len({row["id"] for row in rows}) == len(rows)
    card = json.loads((tmp_path / "mix" / "train.card.json").read_text())
    assert card["dropped"] == {"in an earlier part": 1}
    assert card["data_sources"] == {"a": 24, "b": 12}
    sources = {row["data_source"] for row in pq.read_table(tmp_path / "mix" / "train.parquet").to_pylist()}
    assert sources == {"a", "b"}


def test_without_shares_all_of_every_part_is_taken(tmp_path, capsys):
    assert mixed(tmp_path) == 0
    parts = ["--part", f"{tmp_path}/a/train.jsonl", "--part", f"{tmp_path}/b/train.jsonl"]
    assert main(["mix", *parts, "--out", str(tmp_path / "whole")]) == 0
    assert len(list(read_questions(tmp_path / "whole" / "train.jsonl"))) == 43  # the question of both once
    assert main(["mix", *parts[:3], f"{parts[3]}=1", "--out", str(tmp_path / "whole")]) == 1
    assert "give every part a share, or none" in capsys.readouterr().err


def test_a_mix_that_cannot_be_says_how_many_rows_can(tmp_path, capsys):
    assert mixed(tmp_path, "--rows", "40") == 1
    assert "train.jsonl has 12 for 13): at most 36 rows" in capsys.readouterr().err


def test_files_of_different_sets_can_be_trained_on_together(tmp_path):
    from datasets import concatenate_datasets, load_dataset

    convert(tmp_path, "musique", written(tmp_path / "m.jsonl", MUSIQUE, "lines"))
    first = (tmp_path / "out" / "train.parquet").rename(tmp_path / "m.parquet")
    convert(tmp_path, "nq", written(tmp_path / "n.jsonl", NQ_OPEN, "lines"))  # no titles, no type, no level
    files = [str(first), str(tmp_path / "out" / "train.parquet")]
    tables = [load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))["train"] for file in files]
    assert len(concatenate_datasets(tables)) == 3  # as verl joins its training files


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes", "yes/no"),
        ("no.", "yes/no"),
        ("1,024", "number"),
        ("1984", "date"),
        ("12 March 1984", "date"),
        ("May", "text"),
        ("Oslo", "text"),
    ],
)
def test_types_of_answers(answer, kind):
    assert answer_type(answer) == kind


words = st.lists(st.sampled_from("who where when did the cat of queen anne live 1984".split()), min_size=1, max_size=12).map(
    " ".join
)


@given(st.lists(words, min_size=1, max_size=8), st.lists(words, max_size=8))
def test_an_excluded_question_is_found_and_what_is_called_nearly_the_same_is(excluded, asked):
    overlap = Overlap(excluded, 0.7)
    assert all(found and found[0] == "same" for found in overlap.find(excluded))
    for question, found in zip(asked, overlap.find(asked), strict=True):
        if found and found[0] == "nearly the same":
            assert jaccard(shingles(question), shingles(found[1])) >= 0.7


def test_the_help_names_every_data_set(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in DATASETS)


def test_too_high_a_threshold_is_refused():
    with pytest.raises(ValueError, match="at most 1"):
        Overlap(["x"], 1.5)


def test_a_broken_alias_file_is_told(tmp_path):
    from data_preprocess.datasets.two_wiki import read_aliases

    with pytest.raises(DataError, match="line 1: expected Q_id"):
        read_aliases(written(tmp_path / "a.json", [{"id": 1}], "lines"))
