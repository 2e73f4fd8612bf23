"""`make data-…` and `make corpus-…`, on small downloads of the right names: what they write is what the recipes name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOTPOT = [{"_id": str(n), "question": f"which of the {n} towns is older", "answer": f"a{n}", "type": "bridge", "level": "hard",
           "supporting_facts": [["T", 0]], "context": []} for n in range(3000)]  # fmt: skip


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    (folder / "hotpot_train_v1.1.json").write_text(json.dumps(HOTPOT))
    (folder / "hotpot_dev_fullwiki_v1.json").write_text(
        json.dumps([{**row, "question": f"dev {row['question']}"} for row in HOTPOT[:600]])
    )
    for split in ("train", "dev"):
        row = {
            "id": "2hop__1_2",
            "paragraphs": [{"title": "T", "paragraph_text": "Some words.", "is_supporting": True}],
            "question": f"{split}?",
            "answer": "x",
            "answer_aliases": [],
            "answerable": True,
        }
        (folder / f"musique_ans_v1.0_{split}.jsonl").write_text(lines([row]))
        (folder / f"NQ-open.{split}.jsonl").write_text(lines([{"question": f"who is the {split}", "answer": ["x"]}]))
    for stage in (1, 2):
        (folder / f"stage_{stage}.jsonl").write_text(lines([{"idx": 1, "question": f"stage {stage}?", "answer": "x"}]))
    kilt = {"wikipedia_id": "1", "wikipedia_title": "T", "text": ["T", "Some words of a page."]}
    (folder / "kilt_knowledgesource.json").write_text(lines([kilt]))
    (folder / "psgs_w100.tsv.gz").write_bytes(gzip.compress(b"id\ttext\ttitle\n1\tsome words\tT\n"))
    with tarfile.open(folder / "enwiki-20171001-pages-meta-current-withlinks-abstracts.tar.bz2", "w:bz2") as archive:
        data = bz2.compress(lines([{"id": "1", "title": "T", "text": ["One.", " Two."]}]).encode())
        member = tarfile.TarInfo("AA/wiki_00.bz2")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return folder


def make(target, raw, out, *more):
    old = ["-o", "install", "-o", ".venv/.installed"]  # this environment is the installed one
    command = ["make", *old, target, f"RAW={raw}", f"DATA_DIR={out}", f"BIN={Path(sys.executable).parent}", "WORKERS=1", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""})
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("method", ["research", "r1_searcher", "r1_searcher_pp", "search_r1"])
def test_the_recipes_files_are_there(raw, tmp_path, method):
    make(f"data-{method}", raw, tmp_path)
    for name in ("gpu", "cold_start"):
        path = ROOT / "recipes" / method / f"{name}.yaml"
        if not path.exists():
            continue
        text = path.read_text()
        named = {part.split('"')[0] for part in text.split('"${data_dir}/')[1:]}
        assert named
        for file in named:
            if "cold_start/" not in file:  # written by the cold start itself
                assert (tmp_path / file).is_file(), file
    if method == "research":
        make("index", raw, tmp_path, "CORPUS=musique")
        assert (tmp_path / "musique" / "bm25" / "manifest.json").is_file()
    if method == "r1_searcher_pp":
        assert sum(1 for _ in (tmp_path / method / "cold_start.jsonl").open()) == 2000


@pytest.mark.slow
@pytest.mark.parametrize(("corpus", "folder"), [("kilt", "kilt"), ("wiki18", "wiki18"), ("hotpotqa", "hotpotqa_abstracts")])
def test_a_corpus_becomes_passages_and_an_index(raw, tmp_path, corpus, folder):
    make(f"corpus-{corpus}", raw, tmp_path)
    assert json.loads((tmp_path / folder / "passages.jsonl.manifest.json").read_text())["passages"] == 1
    make("index", raw, tmp_path, f"CORPUS={folder}")
    assert (tmp_path / folder / "bm25" / "manifest.json").is_file()
