"""BM25's scoring and its builder against bm25s and against plain sums: the same scores bit for bit, in a total order."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from bm25s import BM25 as Engine
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_serving import IndexingError
from rag_serving.corpus import Corpus
from rag_serving.indexing import BM25Options, build_index
from rag_serving.indexing import words as splitting
from rag_serving.indexing.postings import write_postings
from rag_serving.indexing.synthetic import synthetic
from rag_serving.indexing.words import TermIds
from rag_serving.retrievers import bm25_kernel, load_index
from rag_serving.vocabulary import HASHES, Vocabulary, tokenizer

ARRAYS = ("data", "indices", "indptr")


def postings_of(generator, passages, terms, density):
    """Return (starts, rows, scores) of a random index; few distinct scores, so that many sums are equal."""
    rows = [np.flatnonzero(generator.random(passages) < share) for share in density(generator, terms)]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    scores = generator.choice([0.5, 1.0, 1.1, 2.3, 7.7], int(starts[-1])).astype(np.float32)
    return starts, np.concatenate(rows).astype(np.int32), scores


def kernel(starts, rows, scores, passages, queries, k, parts=1):
    """Ask the compiled code."""
    terms = np.array([term for query in queries for term in query], np.int64)
    pointers = np.cumsum([0, *map(len, queries)])
    found, values = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    counts = np.empty(len(queries), np.int64)
    maxima = np.zeros(len(starts) - 1, np.float32)
    for part in range(parts):
        bm25_kernel.best(
            terms,
            pointers,
            starts[terms],
            starts[terms + 1],
            rows,
            scores,
            maxima,
            passages,
            part,
            parts,
            found,
            values,
            counts,
        )
    return [list(zip(found[i, :n].tolist(), values[i, :n].tolist(), strict=True)) for i, n in enumerate(counts)]


def plain(starts, rows, scores, passages, query, k):
    """Return the same by an array of all passages' scores, added in the query's order."""
    sums = np.zeros(passages, np.float32)
    for term in query:
        sums[rows[starts[term] : starts[term + 1]]] += scores[starts[term] : starts[term + 1]]
    best = [(row, float(sums[row])) for row in np.lexsort((np.arange(passages), -sums)) if sums[row] > 0]
    return best[:k]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.sampled_from([1, 7, 1_023, 1_024, 1_025, 5_000, 40_000]),
    k=st.sampled_from([1, 2, 5, 10, 100]),
    queries=st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=4),
)
def test_the_best_passages_are_those_of_plain_sums_with_equal_scores_in_the_order_of_rows(seed, passages, k, queries):
    generator = np.random.default_rng(seed)
    index = postings_of(generator, passages, 6, lambda draw, terms: 10 ** draw.uniform(-4, 0, terms))
    k = min(k, passages)
    for query, found in zip(queries, kernel(*index, passages, queries, k), strict=True):
        assert found == plain(*index, passages, query, k)


_HOSTILE = """
import numpy as np
from tests.unit.test_bm25_kernel import kernel

def one(rows, scores, terms, passages):
    starts = np.arange(terms + 1, dtype=np.int64) * (len(rows) // terms)
    kernel(starts, np.asarray(rows, np.int32), np.asarray(scores, np.float32), passages, [list(range(terms))] * 2, 5)

generator = np.random.default_rng(0)
one(np.tile(np.arange(40_000), 8), np.zeros(320_000), 8, 40_000)
one(np.tile(np.arange(40_000), 8), -np.ones(320_000), 8, 40_000)
one(np.tile(np.arange(40_000)[::-1], 8), np.ones(320_000), 8, 40_000)
for magnitude in (100, 40_000, 2**31 - 1):
    for _ in range(20):
        one(generator.integers(-magnitude, magnitude, 320_000), generator.standard_normal(320_000), 8, 40_000)
print("alive")
"""


def test_postings_that_a_stranger_made_up_end_no_process():
    told = subprocess.run(
        [sys.executable, "-c", _HOSTILE], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert told.stdout == "alive\n", told.stderr[-1_000:]


def test_the_first_five_of_ten_are_the_five():
    generator = np.random.default_rng(3)
    index = postings_of(generator, 90_000, 6, lambda draw, terms: draw.uniform(0.001, 0.3, terms))
    queries = [generator.integers(0, 6, 4).tolist() for _ in range(30)]
    five, ten = (kernel(*index, 90_000, queries, k) for k in (5, 10))
    assert five == [found[:5] for found in ten]
    assert kernel(*index, 90_000, queries, 5, parts=3) == five


def test_a_strangers_endless_words_are_not_remembered(built):
    vocabulary = Vocabulary(built / "bm25")
    vocabulary.token_ids("word " * 9)
    tracemalloc.start()
    for number in range(300):
        assert vocabulary.token_ids(f"{'a' * 19_990}x{number:07d}") == []
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000  # 300 words of 20 KB are 6 MB


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    corpus = folder / "corpus.jsonl"
    with corpus.open("w") as file:
        for _, passage in zip(range(6_000), synthetic(60), strict=False):
            file.write(json.dumps(passage) + "\n")
    build_index(corpus, folder / "index", memory=200_000)
    return folder / "index"


def bm25s_index(directory, **options):
    """Return bm25s' own index of the corpus in `directory`."""
    corpus, words = Corpus(directory), tokenizer()
    ids = list(words.streaming_tokenize(corpus[row]["contents"] for row in range(len(corpus))))
    engine = Engine(**options)
    engine.scores = engine.build_index_from_ids(list(words.stem_to_sid.values()), ids, show_progress=False)
    engine.vocab_dict = words.stem_to_sid
    return engine, words


def test_the_builder_writes_the_arrays_of_bm25s_bit_for_bit_a_range_of_terms_at_a_time(built):
    engine, words = bm25s_index(built)
    for name in ARRAYS:
        ours = np.load(built / "bm25" / f"{name}.csc.index.npy")
        assert ours.dtype == engine.scores[name].dtype
        assert np.array_equal(ours, engine.scores[name])
    told = json.loads((built / "bm25" / "vocab.tokenizer.json").read_text())
    assert told == {"word_to_stem": words.word_to_stem, "stem_to_sid": words.stem_to_sid, "word_to_id": words.word_to_id}


@settings(max_examples=40, deadline=None)
@given(
    passages=st.lists(st.lists(st.integers(0, 8), max_size=30), min_size=1, max_size=12),
    memory=st.sampled_from([1, 64, 10_000]),
    threads=st.integers(1, 3),
    k1=st.sampled_from([0.0, 0.9, 1.5]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_any_passages_are_scored_as_bm25s_scores_them(tmp_path_factory, passages, memory, threads, k1, b):
    if not any(passages):
        return
    seen = dict.fromkeys(term for passage in passages for term in passage)
    numbers = {term: i for i, term in enumerate(seen)}
    passages = [[numbers[term] for term in passage] for passage in passages]
    engine = Engine(k1=k1, b=b)
    expected = engine.build_index_from_ids(list(range(len(numbers))), passages, show_progress=False)
    folder = tmp_path_factory.mktemp("postings")
    ids = np.array([term for passage in passages for term in passage], np.int32)
    ends = np.cumsum([len(passage) for passage in passages])
    write_postings(ids, ends, len(numbers), folder, k1, b, memory, threads)
    for name in ARRAYS:
        assert np.array_equal(np.load(folder / f"{name}.csc.index.npy"), expected[name])


def test_several_processes_number_the_words_as_one_does(built, monkeypatch):
    def all_of(processes):
        terms = TermIds(built, processes=processes)
        pieces = list(terms)
        return [np.concatenate(part).tolist() for part in zip(*pieces, strict=True)], terms.tokenizer

    (one_ids, one_lengths), one = all_of(1)
    monkeypatch.setattr(splitting, "_ALONE", 0)
    monkeypatch.setattr(splitting, "CHUNK", 700)
    (two_ids, two_lengths), two = all_of(2)
    assert (one_ids, one_lengths) == (two_ids, two_lengths)
    for name in ("stem_to_sid", "word_to_id", "word_to_stem"):
        assert getattr(one, name) == getattr(two, name)
        assert list(one.stem_to_sid) == list(two.stem_to_sid)


def test_scores_are_those_of_bm25s_for_queries_of_the_corpus(built):
    retriever, corpus = load_index(built), Corpus(built)
    engine, _ = bm25s_index(built)
    vocabulary = Vocabulary(built / "bm25")
    for row in range(0, 6_000, 60):
        query = " ".join(corpus[row]["contents"].split()[3:12])
        token_ids = vocabulary.token_ids(query)
        if not token_ids:
            continue
        _, scores = engine.retrieve([token_ids], k=10, show_progress=False)
        hits = retriever.search([query], 10)[0]
        assert [hit.score for hit in hits] == [float(score) for score in scores[0] if score > 0]


def test_an_index_without_the_table_of_hashes_is_read_all_the_same(built, tmp_path):
    new = Vocabulary(built / "bm25")
    for path in (built / "bm25").iterdir():
        if path.name != HASHES:
            (tmp_path / path.name).symlink_to(path)
    old = Vocabulary(tmp_path)
    stems = json.loads((built / "bm25" / "vocab.index.json").read_text())
    for stem, number in list(stems.items())[:500]:
        assert new.term_id(stem) == old.term_id(stem) == number
    assert len(new) == len(old) == len(stems)


@pytest.mark.parametrize(
    "options", [BM25Options(k1=-1), BM25Options(b=1.5), BM25Options(language="xx"), BM25Options(k1=float("nan"))]
)
def test_settings_that_cannot_be_are_refused_before_anything_is_read(tmp_path, options):
    with pytest.raises(IndexingError, match=r"k1 of 0 or more|choose of: en, de"):
        build_index(tmp_path / "none.jsonl", tmp_path / "out", bm25=options)


def test_another_language_has_its_stems_and_stop_words(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "Die Häuser der Stadt"}\n{"id": "2", "contents": "Ein Garten"}\n')
    build_index(corpus, tmp_path / "index", bm25=BM25Options(language="de", k1=0.9, b=0.4))
    found = load_index(tmp_path / "index").search(["Haus der", "die der", "Gärten"], 2)
    assert [[hit.id for hit in hits] for hits in found] == [["1"], [], ["2"]]


def test_the_rows_of_a_term_rise(built):
    starts = np.load(built / "bm25" / "indptr.csc.index.npy")
    rows = np.load(built / "bm25" / "indices.csc.index.npy")
    assert all(np.all(np.diff(rows[a:b]) > 0) for a, b in pairwise(starts.tolist()[:3_000]))


def test_what_splits_ends_with_a_command_that_is_killed_outright(built):
    code = (
        "import sys, time; from pathlib import Path; from rag_serving.indexing import words; words._ALONE = 0\n"
        "if __name__ == '__main__':\n"
        "    pieces = iter(words.TermIds(Path(sys.argv[1]), processes=2)); next(pieces); print('split', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(built)], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"split\n"
        children = psutil.Process(command.pid).children(recursive=True)
        command.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_vocabulary_that_nobody_uses_keeps_no_file(built):
    vocabulary = Vocabulary(built / "bm25")
    vocabulary.token_ids("some words")
    gone = weakref.ref(vocabulary)
    gc.disable()
    try:
        del vocabulary
        assert gone() is None
    finally:
        gc.enable()
