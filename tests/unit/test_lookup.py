"""From ids and titles to rows: files beside the corpus, or, of an index without them, the same in memory."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving import IndexingError, lookup
from rag_serving.corpus import CORPUS, OFFSETS, Corpus
from rag_serving.indexing import build_index, read_manifest
from rag_serving.indexing.manifest import check
from rag_serving.lookup import DOCUMENTS, IDS, Lookup, LookupBuilder, bare, document_of, title_of
from rag_serving.retrievers import open_retriever
from rag_serving.settings import Settings

PASSAGES = [
    {"id": "rome#0", "contents": '"Rome"\nRome is the capital.'},
    {"id": "rome#1", "contents": '"Rome"\nIt lies on the Tiber.'},
    {"id": "alone", "contents": "one line without a title"},
    {"id": "nice-0", "contents": "Nice\nNice is a city."},
    {"id": "rome#2", "contents": "Rome\nOf another page."},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lookup")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PASSAGES))
    build_index(folder / "c.jsonl", folder / "i")
    return folder / "i"


def write(folder, passages):
    """Write a corpus without a lookup, as older versions did."""
    lines = [json.dumps(row).encode() + b"\n" for row in passages]
    (folder / CORPUS).write_bytes(b"".join(lines))
    np.save(folder / OFFSETS, np.cumsum([0, *map(len, lines)]))
    return Corpus(folder)


def rows(runs):
    return [row for run in runs for row in run]


def test_ids_titles_and_documents_are_found_in_the_order_of_the_corpus(index):
    found = Lookup(Corpus(index))
    assert [found.row(passage["id"]) for passage in PASSAGES] == [0, 1, 2, 3, 4]
    assert found.row("rome") is found.row("") is found.row("rome#3") is None
    assert rows(found.titled("Rome")) == rows(found.titled('"Rome"')) == [0, 1, 4]
    assert found.titled("rome") == found.titled("one line without a title") == found.titled("") == []
    assert (rows(found.document("rome")), rows(found.document("nice")), found.document("alone")) == ([0, 1, 4], [3], [])


def test_the_tables_are_listed_in_the_manifest_with_their_hashes_and_are_mapped(index):
    assert {IDS, DOCUMENTS} <= set(read_manifest(index)["files"])
    found = Lookup(Corpus(index))
    assert isinstance(found._ids, np.memmap)
    assert isinstance(found._documents, np.memmap)


def test_an_index_of_an_older_version_opens_and_its_lookup_is_made_in_memory(index, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(index, old)
    manifest = read_manifest(old)
    for name in (IDS, DOCUMENTS):
        (old / name).unlink()
        del manifest["files"][name]
    (old / "manifest.json").write_text(json.dumps(manifest))
    check(old, read_manifest(old), "always")
    opened = open_retriever(Settings(index=old, retriever="random"))
    assert opened.corpus is not None
    found = Lookup(opened.corpus)
    assert (found.row("nice-0"), rows(found.titled("Rome"))) == (3, [0, 1, 4])


def test_a_table_of_another_corpus_is_refused(index, tmp_path):
    shutil.copytree(index, tmp_path / "i")
    write(tmp_path / "i", PASSAGES[:2])
    with pytest.raises(IndexingError, match=r"lookup\.ids\.npy is of another corpus"):
        Lookup(Corpus(tmp_path / "i"))


def test_names_with_the_same_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(lookup, "_hash", lambda kind, name: len(kind))
    found = Lookup(write(tmp_path, PASSAGES))
    assert [found.row(passage["id"]) for passage in PASSAGES] == [0, 1, 2, 3, 4]
    assert (rows(found.titled("Nice")), found.row("Nice"), found.titled("Paris")) == ([3], None, [])


names = st.text(alphabet='ab#"- 1\n', max_size=4)


@given(st.lists(st.tuples(names, names), min_size=1, max_size=12, unique_by=lambda pair: pair[0]), names)
def test_every_passage_is_found_by_all_its_names_and_by_no_other(tmp_path_factory, pairs, other):
    passages = [{"id": name, "contents": contents} for name, contents in pairs]
    found = Lookup(write(tmp_path_factory.mktemp("c"), passages))
    for asked in [other, *(bare(title_of(contents)) for _, contents in pairs), *(document_of(name) for name, _ in pairs)]:
        wanted = [row for row, (_, contents) in enumerate(pairs) if bare(asked) and title_of(contents) == bare(asked)]
        assert rows(found.titled(asked)) == wanted
        assert rows(found.document(asked)) == [
            row for row, (name, _) in enumerate(pairs) if asked and document_of(name) == asked
        ]
    assert [found.row(name) for name, _ in pairs] == list(range(len(pairs)))


def test_what_was_written_equals_what_is_made_in_memory(index):
    builder = LookupBuilder()
    for passage in PASSAGES:
        builder.add(passage)
    for name, table in zip((IDS, DOCUMENTS), builder.arrays(), strict=True):
        np.testing.assert_array_equal(np.load(index / name), table)
