"""Dumps to passages: the formats, the ways to cut, memory, kills."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preprocess.__main__ import CORPUS_FORMATS, main
from data_preprocess.corpus import blocks, build
from data_preprocess.corpus.cutting import UNITS, Cutting, cutter, windows
from data_preprocess.corpus.documents import FORMATS, Document
from rag_serving.indexing.formats import read_corpus
from research_rl.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights"
KILT = [
    {"_id": "290", "wikipedia_id": "290", "wikipedia_title": "A", "categories": "x", "anchors": [],
     "text": ["A\n", "A is a letter. It is the first.\n", "Section::::History.\n", "BULLET::::- old\n", "It is “old” — très.\u2028Yes.\n"]},
    {"wikipedia_id": "291", "wikipedia_title": "Empty", "text": ["Empty\n"]},
    {"wikipedia_id": "292", "wikipedia_title": "Long", "text": ["Long\n", " ".join(f"w{n}" for n in range(250))]},
]  # fmt: skip
HOTPOT = [
    {"id": "12", "url": "https://en.wikipedia.org/wiki?curid=12", "title": "Anarchism", "text": ["It is a movement.", " It is old."],
     "charoffset": [], "text_with_links": []},
    {"id": "13", "title": "Full", "text": [["Full"], ["One.", " Two."], [" Three."]]},
]  # fmt: skip
EXTRACTED = [
    {"id": "1", "url": "u", "title": "T", "text": "T\n\nFirst line.\nSecond line."},
    {"id": "2", "title": "U", "text": "No title."},
]
PSGS = 'id\ttext\ttitle\n1\t"Aaron ( or ; """"Ahärôn"""") is a prophet"\tAaron\n2\tplain text\t"A ""B"""\n'


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def passages(tmp_path, source, format, **options):
    arguments = [f"--{name.replace('_', '-')}={value}" if value is not True else f"--{name}" for name, value in options.items()]
    out = tmp_path / "passages.jsonl"
    assert main(["corpus", "--input", str(source), "--format", format, "--out", str(out), "--workers=1", *arguments]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(row["id"], row["contents"]) for row in rows], json.loads((tmp_path / "passages.jsonl.manifest.json").read_text())


def test_kilt_is_cut_as_the_index_command_cuts_it(tmp_path):
    source = tmp_path / "kilt.json"
    source.write_text(lines(KILT), encoding="utf-8")
    found, manifest = passages(tmp_path, source, "kilt")
    assert found[0] == ("290-0", "A\nA is a letter. It is the first. old It is “old” — très. Yes.")
    assert [identifier for identifier, _ in found] == ["290-0", "292-0", "292-1", "292-2"]
    assert found == [(row["id"], row["contents"]) for row in read_corpus(source, "kilt")]
    assert (manifest["documents"], manifest["passages"], manifest["documents without text"]) == (3, 4, 1)
    assert len(manifest["inputs"][0]["sha256"]) == len(manifest["output"]["sha256"]) == 64


def test_hotpotqas_archive_of_packed_files(tmp_path):
    source = tmp_path / "abstracts.tar.bz2"
    with tarfile.open(source, "w:bz2") as archive:
        for name, rows in (("AA/wiki_00.bz2", HOTPOT[:1]), ("AB/wiki_00.bz2", HOTPOT[1:])):
            data = bz2.compress(lines(rows).encode())
            member = tarfile.TarInfo(f"enwiki/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert passages(tmp_path, source, "hotpotqa")[0] == [
        ("12-0", "Anarchism\nIt is a movement. It is old."), ("13-0", "Full\nOne. Two. Three."),
    ]  # fmt: skip
    assert passages(tmp_path, source, "hotpotqa", by="sentences", size=2, overlap=1)[0][1:] == [
        ("13-0", "Full\nOne. Two."), ("13-1", "Full\nTwo. Three."),
    ]  # fmt: skip


def test_wikiextractors_folder(tmp_path):
    folder = tmp_path / "text"
    for name, row in (("AA", EXTRACTED[0]), ("AB", EXTRACTED[1])):
        (folder / name).mkdir(parents=True)
        (folder / name / "wiki_00").write_text(lines([row]))
    (folder / "AB" / "wiki_01.bz2").write_bytes(bz2.compress(lines([{"id": "3", "title": "V", "text": "Packed."}]).encode()))
    found, manifest = passages(tmp_path, folder, "wikiextractor")
    assert found == [("1-0", "T\nFirst line. Second line."), ("2-0", "U\nNo title."), ("3-0", "V\nPacked.")]
    assert [file["file"] for file in manifest["inputs"]] == ["wiki_00", "wiki_00", "wiki_01.bz2"]


@pytest.mark.parametrize("packed", [False, True])
def test_dprs_table_is_kept_as_it_is(tmp_path, packed):
    source = tmp_path / ("psgs_w100.tsv.gz" if packed else "psgs_w100.tsv")
    source.write_bytes(gzip.compress(PSGS.encode()) if packed else PSGS.encode())
    found, _ = passages(tmp_path, source, "dpr")
    assert found == [("1", 'Aaron\nAaron ( or ; ""Ahärôn"") is a prophet'), ("2", 'A "B"\nplain text')]
    assert found == [(row["id"], row["contents"]) for row in read_corpus(source, "dpr")]


def test_flashrags_passages_can_be_cut_anew(tmp_path):
    source = tmp_path / "c.jsonl"
    source.write_text(lines([{"id": "a", "contents": "Title\none two three"}, {"id": "b", "title": "U", "text": "four"}]))
    assert passages(tmp_path, source, "flashrag")[0] == [("a", "Title\none two three"), ("b", "U\nfour")]
    assert passages(tmp_path, source, "flashrag", by="words", size=2)[0] == [
        ("a-0", "Title\none two"), ("a-1", "Title\nthree"), ("b-0", "U\nfour"),
    ]  # fmt: skip


def test_by_tokens_the_text_itself_is_cut(tmp_path):
    text = " ".join(KILT[0]["text"][1:])
    pieces = list(cutter(Cutting("tokens", 5, 2, str(WEIGHTS)))(Document("1", "A", text)))
    assert all(piece in text for piece in pieces)
    assert text.startswith(pieces[0])
    assert text.rstrip().endswith(pieces[-1].rstrip())


def test_by_sentences_abbreviations_end_none():
    document = Document("1", "", "Mr. Smith met Dr. J. Doe. He paid $3.5 million! Was it so?")
    assert list(cutter(Cutting("sentences", 1))(document)) == [
        "Mr. Smith met Dr. J. Doe.",
        "He paid $3.5 million!",
        "Was it so?",
    ]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12), st.data())
def test_windows_cover_everything_in_order_and_share_the_overlap(items, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = [list(window) for window in windows(items, size, overlap)]
    joined = [item for number, window in enumerate(found) for item in (window if not number else window[overlap:])]
    assert joined == items
    assert all(len(window) <= size for window in found)
    assert all(len(window) > overlap for window in found[1:])  # none lies within the one before
    assert all(one[-overlap:] == two[:overlap] for one, two in itertools.pairwise(found) if overlap)


@given(st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8"), max_size=30), min_size=1), st.integers(1, 50))
def test_every_line_is_in_one_block_and_its_number_is_right(tmp_path_factory, rows, size):
    path = tmp_path_factory.mktemp("b") / "x.jsonl"
    data = "\n".join(rows).encode() + b"\n"
    path.write_bytes(data)
    (path.parent / "y.jsonl.gz").write_bytes(gzip.compress(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        for name in ("x.jsonl", "y.jsonl.gz"):
            cut = list(blocks.blocks_of(path.parent / name, (".jsonl",)))
            assert [line for block in cut for line in block.lines()] == [row.encode() for row in rows]
            assert sum(block.read for block in cut) == (path.parent / name).stat().st_size


def test_a_malformed_line_is_counted_and_told_by_number_and_strict_stops(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    source = tmp_path / "kilt.json"
    rows = lines(KILT[:1]) + '{"wikipedia_id": 1}\n' + lines(KILT[2:]) + "no json\n"
    source.write_text(rows, encoding="utf-8")
    found, manifest = passages(tmp_path, source, "kilt")
    assert (len(found), manifest["malformed lines"]) == (4, 2)
    told = [json.loads(line) for line in (tmp_path / "passages.jsonl.dropped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in told] == [f"{source}, line 2", f"{source}, line 4"]
    arguments = ["corpus", "--input", str(source), "--format", "kilt", "--out", str(tmp_path / "strict.jsonl"), "--workers=1"]
    assert main([*arguments, "--strict"]) == 1
    assert f"{source}, line 2: malformed" in capsys.readouterr().err
    assert not (tmp_path / "strict.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "nowhere", "--format", "kilt"), "no dump at nowhere"),
        (("--input", str(ROOT / "docs"), "--format", "flashrag"), r"ends in .jsonl"),
        (("--input", str(ROOT / "README.md"), "--format", "kilt"), "no passage came of"),
        (("--input", str(ROOT / "README.md"), "--format", "kilt", "--overlap", "100"), "0 ≤ overlap < size"),
        (("--input", str(ROOT / "README.md"), "--format", "kilt", "--by", "tokens"), "name the tokenizer"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, capsys, arguments, message):
    assert main(["corpus", *arguments, "--out", str(tmp_path / "p.jsonl"), "--workers=1"]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_breaks_off_is_told(tmp_path, capsys):
    source = tmp_path / "c.jsonl.gz"
    noise = random.Random(1).randbytes(20_000).hex()
    source.write_bytes(gzip.compress(lines([{"id": "1", "contents": noise}]).encode())[:-100])
    assert (
        main(["corpus", "--input", str(source), "--format", "flashrag", "--out", str(tmp_path / "p.jsonl"), "--workers=1"]) == 1
    )
    assert "cannot be unpacked to its end" in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()


def test_the_commands_choices_are_the_formats():
    assert set(CORPUS_FORMATS) == set(FORMATS)
    with pytest.raises(ConfigError, match="choose one of: words"):
        Cutting("pages").check()
    assert UNITS == ("words", "sentences", "tokens", "keep")


def big(path: Path, pages: int) -> Path:
    """Write pages of about 600 words in KILT's format; a line in 500 is broken."""
    rng, words = random.Random(1), [f"word{n}" for n in range(999)]
    with path.open("w") as file:
        for page in range(pages):
            text = ["T\n", *(" ".join(rng.choices(words, k=200)) for _ in range(3))]
            row = json.dumps({"wikipedia_id": str(page), "wikipedia_title": f"T{page}", "text": text})
            file.write((row if page % 500 else row[:-9]) + "\n")
    return path


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_and_the_result_is_byte_for_byte_the_same(tmp_path):
    source = big(tmp_path / "kilt.json", 4_000)
    undisturbed = tmp_path / "one.jsonl"
    code = (  # small blocks, and a journal after each
        "import sys; from data_preprocess.corpus import blocks, build; blocks.BLOCK = 1 << 17; build.JOURNAL_S = 0.0;"
        "from data_preprocess.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def command(out):
        arguments = ["corpus", "--input", str(source), "--format", "kilt", "--out", str(out), "--workers", "2"]
        return [sys.executable, "-c", code, *arguments]

    subprocess.run(command(undisturbed), check=True, capture_output=True, cwd=ROOT)
    killed, journal, part = tmp_path / "two.jsonl", tmp_path / ".two.jsonl.journal.json", tmp_path / ".two.jsonl.part"
    reached = []
    for blocks_more in (3, 20, 40):
        process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and json.loads(journal.read_text())["blocks"] >= blocks_more):
            time.sleep(0.002)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        reached.append(json.loads(journal.read_text())["blocks"])
        assert not killed.exists()
        with part.open("ab") as file:
            file.write(b'{"half a li')  # what was not yet on record
    assert len(reached) >= 2
    subprocess.run(command(killed), check=True, capture_output=True, cwd=ROOT)
    assert killed.read_bytes() == undisturbed.read_bytes()
    names = [path.with_name(f"{path.name}.dropped.jsonl").read_bytes() for path in (undisturbed, killed)]
    assert names[0] == names[1]
    assert names[0].count(b"\n") == 8
    assert json.loads((tmp_path / "two.jsonl.manifest.json").read_text())["passages"] == undisturbed.read_bytes().count(b"\n")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_other_settings_are_not_mixed_into_a_build_that_was_begun(tmp_path, monkeypatch):
    source, out = big(tmp_path / "kilt.json", 1_200), tmp_path / "p.jsonl"
    monkeypatch.setattr(blocks, "BLOCK", 1 << 17)
    monkeypatch.setattr(build, "JOURNAL_S", 0.0)

    class Interrupted(Exception):
        pass

    class Progress:
        def __init__(self, total):
            self.total = total

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, count):
            if (tmp_path / ".p.jsonl.journal.json").exists():
                raise Interrupted

    monkeypatch.setattr(build, "progress_in_bytes", Progress)
    with pytest.raises(Interrupted):
        build.build(source, out, "kilt", Cutting(), workers=1)
    monkeypatch.undo()
    with pytest.raises(DataError, match="other cutting: pass --fresh"):
        build.build(source, out, "kilt", Cutting(size=50), workers=1)
    assert build.build(source, out, "kilt", Cutting(size=50), workers=1, fresh=True)["passages"] == 1197 * 13
