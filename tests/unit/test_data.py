"""The fictional world and the file formats."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from data_preprocess.__main__ import main
from data_preprocess.world import SPLITS, World, documents
from data_preprocess.world.names import all_words, inventory
from research_rl.errors import DataError
from research_rl.files import write_jsonl
from research_rl.questions import read_questions
from research_rl.tools.search_titles import beginning


@pytest.fixture(scope="module")
def world():
    return World(3)


def test_a_world_is_the_same_for_the_same_seed_and_another_for_another():
    one, again, other = (list(World(seed, 0.1).passages()) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert World(1, 0.1).questions("train", 20) == World(1, 0.1).questions("train", 20)


def test_a_world_has_two_thousand_passages_with_distinct_names(world):
    passages = list(world.passages())
    assert len(passages) >= 2_000
    assert len({p["id"] for p in passages}) == len({p["contents"].split("\n")[0] for p in passages}) == len(passages)


def test_names_share_words_so_that_a_lexical_search_meets_distractors(world):
    surnames = [e.name.split()[1] for split in SPLITS for e in world.entities[split] if e.kind == "person"]
    assert len(set(surnames)) < len(surnames) / 5


def test_the_splits_share_no_entity_and_no_answer_name(world):
    closed = {"yes", "no"}
    seen: dict[str, str] = {}
    for split in SPLITS:
        for question in world.questions(split, 100):
            names = {name for name, _, _ in question.chain} | set(question.golden_answers) - closed
            for name in names:
                if name[0].isupper():  # professions and goods are common words
                    assert seen.setdefault(name, split) == split


def test_every_question_is_proved_by_its_supporting_passages(world):
    contents = {p["id"]: p["contents"] for p in world.passages()}
    for question in world.questions("test", 200):
        assert len(question.supporting) == len(question.chain) == (1 if question.type == "one_hop" else 2)
        for passage, (entity, _, value) in zip(question.supporting, question.chain, strict=True):
            assert contents[passage].startswith(entity)
            assert value in contents[passage]
        if question.type == "comparison":
            same = question.chain[0][2] == question.chain[1][2]
            assert question.golden_answers == ("yes" if same else "no",)
        else:
            assert question.golden_answers[0] == question.chain[-1][2]


def test_in_documents_no_search_that_shows_titles_shows_a_fact(world):
    written = list(documents.passages(world))
    contents = {passage["id"]: passage["contents"] for passage in written}
    assert len(contents) == len(written)
    numbered = documents.numbered(world)
    for question in world.questions("test", 200):
        found = documents.evidence(numbered, question)
        assert found["hops"] == len(question.supporting) == len(found["supporting_ids"])
        for identifier, title, (entity, _, value) in zip(
            found["supporting_ids"], found["supporting_titles"], question.chain, strict=True
        ):  # fmt: skip
            assert entity == title
            assert contents[identifier].startswith(f"{title}\n")
            assert contents[identifier].endswith(f" {value}.")
            assert value not in beginning(contents[identifier])
            document = [name for name in contents if name.partition("#")[0] == identifier.partition("#")[0]]
            assert sum(value in contents[name] for name in document) == 1


def test_the_id_of_a_document_does_not_tell_whether_it_is_for_training(world):
    numbers = {split: [documents.numbered(world)[entity.id][0] for entity in world.entities[split]] for split in SPLITS}
    assert sorted(number for each in numbers.values() for number in each) == list(range(1, sum(map(len, numbers.values())) + 1))
    middle = max(numbers["train"]) / 2
    assert all(0.35 < sum(number < middle for number in each) / len(each) < 0.65 for each in numbers.values())


def test_comparisons_are_half_yes(world):
    answers = [q.golden_answers[0] for q in world.questions("test", 200) if q.type == "comparison"]
    assert 0.4 <= answers.count("yes") / len(answers) <= 0.6


def test_the_inventory_never_changes():
    groups = inventory()
    assert [len(groups[name]) for name in ("first", "last", "stem")] == [96, 96, 96]
    assert len(all_words()) == len(set(all_words()))


def test_too_small_a_world_says_so():
    with pytest.raises(ValueError, match="larger scale"):
        World(1, 0.02).questions("dev", 5_000)


def test_too_large_a_world_says_so_and_does_not_hang():
    with pytest.raises(ValueError, match="smaller scale"):
        World(1, 1.5)


def test_the_command_writes_both_formats_and_a_control_without_evidence(tmp_path, capsys):
    assert main(["world", "--out", str(tmp_path), "--scale", "0.2", "--train", "30", "--dev", "10", "--test", "20"]) == 0
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    evidence = {passage for row in test for passage in row["metadata"]["supporting_ids"]}
    left = {json.loads(line)["id"] for line in (tmp_path / "corpus_without_evidence.jsonl").read_text().splitlines()}
    everything = {json.loads(line)["id"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()}
    assert everything - left == evidence
    row = pq.read_table(tmp_path / "control.parquet").to_pylist()[0]
    assert row["data_source"] == "world_control"
    assert row["prompt"] == [{"role": "user", "content": test[0]["question"]}]
    assert row["reward_model"]["ground_truth"] == test[0]["golden_answers"]
    assert row["extra_info"]["question"] == test[0]["question"]


def test_any_flashrag_questions_become_verl_parquet(tmp_path, capsys):
    source = tmp_path / "q.jsonl"
    source.write_text('{"id": 7, "question": "Who?", "golden_answers": ["A", "B"], "type": "x"}\n\n')
    assert main(["flashrag", "--input", str(source), "--out", str(tmp_path), "--data-source", "mine", "--split", "train"]) == 0
    (row,) = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert row["data_source"] == "mine"
    assert row["reward_model"]["ground_truth"] == ["A", "B"]
    assert row["extra_info"]["type"] == "x"


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"id": 1, "question": "q"}',
        '{"id": 1, "question": " ", "golden_answers": ["a"]}',
        '{"id": 1, "question": "q", "golden_answers": []}',
    ],
)
def test_a_malformed_question_is_told_by_file_and_line(tmp_path, line):
    source = tmp_path / "q.jsonl"
    source.write_text('{"id": 1, "question": "q", "golden_answers": ["a"]}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        list(read_questions(source))


def test_a_missing_file_is_told():
    from pathlib import Path

    with pytest.raises(DataError, match="no questions at"):
        list(read_questions(Path("nowhere.jsonl")))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old\n")

    def rows():
        yield {"a": 1}
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_jsonl(path, rows())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
