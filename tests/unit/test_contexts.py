"""The paragraphs that come with questions, as a corpus and as the questions' evidence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_preprocess.__main__ import main
from rag_serving.indexing.formats import detect, read_corpus
from research_rl.questions import read_questions

STAX = ["Stax &amp; Co", ["Stax is a studio.", " It is in  Memphis."]]
SUN = ["Sun", ["Sun is older."]]
MOON = ["Moon", "The Moon is far."]  # not cut into sentences


def hotpot(identifier: str, facts: list[str], context: list[Any], **more: Any) -> dict[str, Any]:
    return {"_id": identifier, "question": f"Which studio is {identifier}?", "answer": "Sun", "type": "bridge", "level": "hard",
            "supporting_facts": [[title, 0] for title in facts], "context": context, **more}  # fmt: skip


def musique(identifier: str, *paragraphs: tuple[str, str, bool], **more: Any) -> dict[str, Any]:
    told = [{"idx": n, "title": title, "paragraph_text": text, "is_supporting": named}
            for n, (title, text, named) in enumerate(paragraphs)]  # fmt: skip
    return {
        "id": identifier,
        "paragraphs": told,
        "question": f"Who is {identifier}?",
        "answer": "Sun",
        "answerable": True,
        **more,
    }


def columns(pairs: list[Any], beside: str) -> dict[str, list[Any]]:
    """The hub's form."""
    return {"title": [title for title, _ in pairs], beside: [other for _, other in pairs]}


def made(tmp_path: Path, dataset: str, splits: dict[str, list[dict[str, Any]]], *options: str) -> Path:
    out, inputs = tmp_path / "out", []
    for split, rows in splits.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
        inputs += ["--input", f"{split}={tmp_path / split}.json"]
    assert main([dataset, *inputs, "--out", str(out), "--contexts", *options]) == 0
    return out


def passages(out: Path) -> dict[str, str]:
    path = out / "passages.jsonl"
    assert detect(path) == "flashrag"
    rows = list(read_corpus(path))  # as `rag-serving index --corpus` reads it
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["contents"] for row in rows}


def evidence(out: Path, split: str = "train") -> list[list[str]]:
    """Contents of each question's supporting passages."""
    found = passages(out)
    return [[found[one] for one in row["metadata"]["supporting_ids"]] for row in read_questions(out / f"{split}.jsonl")]


def test_a_paragraph_stands_once_whichever_rows_and_splits_have_it(tmp_path):
    splits = {
        "train": [hotpot("a", ["Stax &amp; Co", "Sun"], [STAX, SUN]), hotpot("b", ["Sun"], [SUN, MOON])],
        "dev": [hotpot("c", ["Moon"], [MOON, STAX])],
    }
    out = made(tmp_path, "hotpotqa", splits)
    stax = "Stax & Co\nStax is a studio. It is in Memphis."
    assert sorted(passages(out).values()) == ["Moon\nThe Moon is far.", stax, "Sun\nSun is older."]
    assert evidence(out) == [[stax, "Sun\nSun is older."], ["Sun\nSun is older."]]
    assert evidence(out, "dev") == [["Moon\nThe Moon is far."]]
    card = json.loads((out / "passages.card.json").read_text())
    assert (card["paragraphs_read"], card["passages"], card["titles"], card["titles_with_several_texts"]) == (6, 3, 3, 0)
    assert card["sha256"] == {"passages.jsonl": hashlib.sha256((out / "passages.jsonl").read_bytes()).hexdigest()}
    assert [source["file"] for source in card["sources"]] == ["train.json", "dev.json"]
    verl = pq.read_table(out / "train.parquet").to_pylist()
    assert [row["extra_info"]["supporting_ids"] for row in verl] == [
        row["metadata"]["supporting_ids"] for row in read_questions(out / "train.jsonl")
    ]


def test_another_text_under_the_same_title_is_another_passage_and_ids_do_not_depend_on_the_order(tmp_path):
    other = ["Sun", ["Sun is a newspaper."]]
    rows = [hotpot("a", ["Sun"], [SUN]), hotpot("b", ["Sun"], [other]), hotpot("c", ["Sun"], [other, SUN])]
    out = made(tmp_path, "hotpotqa", {"train": rows})
    assert evidence(out) == [
        ["Sun\nSun is older."],
        ["Sun\nSun is a newspaper."],
        ["Sun\nSun is a newspaper.", "Sun\nSun is older."],
    ]
    assert json.loads((out / "passages.card.json").read_text())["titles_with_several_texts"] == 1
    (tmp_path / "again").mkdir()
    assert passages(made(tmp_path / "again", "hotpotqa", {"train": rows[::-1]})) == passages(out)


def test_a_supporting_title_without_a_paragraph_is_taken_from_another_row_or_counted(tmp_path):
    rows = [
        hotpot("a", ["Sun", "Moon"], [SUN]),  # Moon: another row has it
        hotpot("b", ["Moon", "Mars"], [MOON]),  # Mars: nobody
        hotpot("c", ["Twin"], []),  # two texts elsewhere: which one is not told
        hotpot("d", ["Sun"], [["Twin", ["One."]], ["Sun", SUN[1]]]),
        hotpot("e", ["Sun"], [["Twin", ["Two."]], ["Sun", SUN[1]]]),
    ]
    out = made(tmp_path, "hotpotqa", {"train": rows})
    assert evidence(out)[:3] == [["Sun\nSun is older.", "Moon\nThe Moon is far."], ["Moon\nThe Moon is far."], []]
    card = json.loads((out / "train.card.json").read_text())
    assert card["supporting"] == {
        "questions": 4, "of another row": 1, "unknown titles": 2, "questions with unknown titles": 2,
    }  # fmt: skip
    assert json.loads((out / "passages.card.json").read_text())["rows_without_paragraphs"] == 1


def test_musiques_paragraphs_say_themselves_which_of_a_title_supports(tmp_path):
    rows = [
        musique("2hop__1_2", ("Sun", "Sun is older.", True), ("Sun", "It shines.", False), ("Moon", " ", True)),
        musique("2hop__3_4", ("Sun", "It shines.", True), answerable=False),
    ]
    out = made(tmp_path, "musique", {"train": rows})
    assert sorted(passages(out).values()) == ["Sun\nIt shines.", "Sun\nSun is older."]  # of the unanswerable row, too
    assert evidence(out) == [["Sun\nSun is older."]]
    assert json.loads((out / "passages.card.json").read_text())["paragraphs_without_text"] == 1
    assert json.loads((out / "train.card.json").read_text())["supporting"]["unknown titles"] == 1


@pytest.mark.parametrize("dataset", ["hotpotqa", "2wikimultihopqa"])
@pytest.mark.parametrize("beside", ["sentences", "content"])
def test_the_hubs_columns_give_the_same_as_the_official_pairs(tmp_path, dataset, beside):
    official = [hotpot("a", ["Sun", "Stax &amp; Co"], [STAX, SUN, MOON])]
    hub = [{**row, "context": columns(row["context"], beside), "supporting_facts": columns(row["supporting_facts"], "sent_id")}
           for row in official]  # fmt: skip
    texts = [
        {**row, "context": json.dumps(row["context"]), "supporting_facts": json.dumps(row["supporting_facts"])}
        for row in official
    ]
    results = []
    for name, rows in (("official", official), ("hub", hub), ("texts", texts)):
        (tmp_path / name).mkdir()
        out = made(tmp_path / name, dataset, {"train": rows})
        results.append((passages(out), evidence(out)))
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 3
    assert len(results[0][1][0]) == 2


def test_musiques_paragraphs_in_columns_give_the_same(tmp_path):
    official = musique("2hop__1_2", ("Sun", "Sun is older.", True), ("Moon", "Far.", False))
    hub = {
        **official,
        "paragraphs": {name: [row[name] for row in official["paragraphs"]] for name in official["paragraphs"][0]},
    }
    results = []
    for name, row in (("official", official), ("hub", hub)):
        (tmp_path / name).mkdir()
        out = made(tmp_path / name, "musique", {"train": [row]})
        results.append((passages(out), evidence(out)))
    assert results[0] == results[1]
    assert len(results[0][0]) == 2


def test_questions_not_drawn_leave_their_paragraphs_and_a_mix_keeps_the_ids(tmp_path):
    rows = [hotpot(str(n), [f"T{n}"], [[f"T{n}", [f"Text {n}."]]]) for n in range(9)]
    out = made(tmp_path, "hotpotqa", {"train": rows}, "--sample", "2", "--hold-out", "dev=3")
    assert len(passages(out)) == 9
    assert [len(evidence(out, split)) for split in ("train", "dev")] == [2, 3]
    assert json.loads((out / "train.card.json").read_text())["supporting"]["questions"] == 2
    assert main(["mix", "--part", str(out / "dev.jsonl"), "--out", str(tmp_path / "mix")]) == 0
    mixed = {row["id"]: row["metadata"]["supporting_ids"] for row in read_questions(tmp_path / "mix" / "train.jsonl")}
    assert mixed == {row["id"]: row["metadata"]["supporting_ids"] for row in read_questions(out / "dev.jsonl")}


@pytest.mark.parametrize(
    "context", [[["Sun"]], [["Sun", 3]], {"title": ["Sun"], "sentences": []}, 7, [[None, ["x"]]], "no JSON"]
)
def test_malformed_paragraphs_are_told_and_with_strict_nothing_is_written(tmp_path, capsys, context):
    rows = [hotpot("a", ["Sun"], [SUN]), hotpot("b", ["Sun"], context)]
    out = made(tmp_path, "hotpotqa", {"train": rows})
    assert "row 2: malformed: " in capsys.readouterr().err
    assert list(passages(out).values()) == ["Sun\nSun is older."]
    strict = tmp_path / "strict"
    assert main(["hotpotqa", "--input", str(tmp_path / "train.json"), "--out", str(strict), "--contexts", "--strict"]) == 1
    assert list(strict.iterdir()) == []


def test_data_sets_without_paragraphs_refuse_and_name_those_that_have_them(tmp_path, capsys):
    (tmp_path / "n.jsonl").write_text(json.dumps({"question": "who", "answer": ["x"]}) + "\n")
    assert main(["nq", "--input", str(tmp_path / "n.jsonl"), "--out", str(tmp_path / "out"), "--contexts"]) == 1
    assert "--contexts is for hotpotqa, 2wikimultihopqa, musique" in capsys.readouterr().err
    (tmp_path / "h.jsonl").write_text(json.dumps(hotpot("a", ["Sun"], [])) + "\n")
    assert main(["hotpotqa", "--input", str(tmp_path / "h.jsonl"), "--out", str(tmp_path / "out"), "--contexts"]) == 1
    assert "carries a paragraph with a text: leave --contexts out" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
