"""One answer serves every smaller k where a retriever's answers are nested, and only there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_serving.cache import DiskCached
from rag_serving.corpus import Corpus
from rag_serving.indexes import Indexes
from rag_serving.indexing import build_index
from rag_serving.retrievers import Opened, load_index
from rag_serving.retrievers.base import ANY_K, DummyRetriever, Hit, Retriever
from rag_serving.retrievers.controls import Nothing, RandomPassages
from rag_serving.retrievers.dense import Dense, FaissEngine, TorchEngine
from rag_serving.retrievers.hybrid import Hybrid
from rag_serving.retrievers.milvus import Milvus
from rag_serving.retrievers.rerank import Reranked, Scorer
from rag_serving.retrievers.web import WebSearch
from rag_serving.service import Service
from rag_serving.settings import Settings

WORDS = "alpha beta gamma delta epsilon zeta".split()
SIZE = 60


class UpTo(Retriever):
    """Nested up to `nested_to`; beyond it another answer for every k. Keeps what it was asked."""

    size = 100

    def __init__(self, nested_to: int) -> None:
        self.nested_to, self.asked = nested_to, []
        self.gate = threading.Event()
        self.gate.set()

    def search(self, queries, k):
        self.gate.wait(10)
        self.asked += [(query, k) for query in queries]
        return [[Hit(f"{query} {self._kind(query, k)} {i}", "text", float(-i)) for i in range(k)] for query in queries]

    def _kind(self, query, k):
        return "same" if k <= self.nested_to else k


async def started(retriever: Retriever, **options) -> Service:
    """Return a service over it that is ready."""
    indexes = Indexes(Settings(**options), lambda *_: Opened(retriever, "i", "f"))
    indexes.start()
    service = indexes.service()
    while not service.ready:
        await asyncio.sleep(0.001)
    return service


@settings(max_examples=40, deadline=None)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), st.integers(1, 6)), min_size=1, max_size=4),
        min_size=1, max_size=4,
    ),
    nested_to=st.sampled_from([0, 3, ANY_K]), cache_mb=st.sampled_from([0.0, 1.0]), max_batch=st.sampled_from([1, 4]),
)  # fmt: skip
def test_cached_and_joined_answers_are_those_of_the_engine_for_every_k(rounds, nested_to, cache_mb, max_batch):
    async def run():
        service = await started(UpTo(nested_to), cache_mb=cache_mb, max_batch=max_batch)
        engine = UpTo(nested_to)
        for requests in rounds:  # those of a round meet in flight, the next round meets them in the cache
            answers = await asyncio.gather(*(service.search(queries, k) for queries, k in requests))
            for (queries, k), answer in zip(requests, answers, strict=True):
                assert answer.hits == engine.search(queries, k)
        await service.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("nested_to", "asked"), [(ANY_K, [("q", 5), ("q", 9)]), (0, [("q", 5), ("q", 3), ("q", 9)])])
async def test_a_cached_answer_serves_smaller_k_but_not_larger(nested_to, asked):
    retriever = UpTo(nested_to)
    service = await started(retriever)
    retriever.asked.clear()
    for k in (5, 3, 9, 9, 5):
        assert (await service.search(["q"], k)).hits == UpTo(nested_to).search(["q"], k)
    assert retriever.asked == asked
    await service.stop()


async def test_a_query_in_flight_is_joined_by_smaller_k_and_not_by_larger():
    retriever = UpTo(ANY_K)
    service = await started(retriever, cache_mb=0)
    retriever.asked.clear()
    retriever.gate.clear()
    running = [asyncio.create_task(service.search(["q"], k)) for k in (4, 2, 7, 5, 1)]
    await asyncio.sleep(0.02)
    retriever.gate.set()
    answers = await asyncio.gather(*running)
    assert [len(answer.hits[0]) for answer in answers] == [4, 2, 7, 5, 1]
    assert retriever.asked == [("q", 4), ("q", 7)]
    await service.stop()


def test_what_is_kept_on_disk_serves_smaller_k_where_answers_are_nested(tmp_path):
    for nested_to, asked in ((ANY_K, [("q", 5), ("q", 9)]), (0, [("q", 5), ("q", 3), ("q", 9)])):
        retriever = UpTo(nested_to)
        cached = DiskCached(retriever, tmp_path, f"nested to {nested_to}")
        assert cached.nested_to == nested_to
        for k in (5, 3, 9, 9, 5):
            assert cached.search(["q"], k) == UpTo(nested_to).search(["q"], k)
        assert retriever.asked == asked
        cached.close()


# what each retriever promises, on itself


def nested(retriever: Retriever, queries: list[str], sizes: list[int]) -> bool:
    """Return whether all answers for these k are the first hits of those for larger ones."""
    answers = [retriever.search(queries, k) for k in sorted(sizes)]
    return all(
        smaller == [hits[:k] for hits in larger]
        for at, (k, smaller) in enumerate(zip(sorted(sizes), answers, strict=True))
        for larger in answers[at:]
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, 5)) for _ in range(SIZE)]
    (folder / "c.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "contents": f"T\n{text}"}) + "\n" for i, text in enumerate(texts))
    )
    build_index(folder / "c.jsonl", folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def bm25(index):
    return load_index(index, threads=1)


@settings(max_examples=40, deadline=None)
@given(
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    sizes=st.lists(st.integers(1, 70), min_size=2, max_size=4),
)
def test_answers_of_bm25_are_nested(bm25, query, sizes):
    assert bm25.nested_to == ANY_K
    assert nested(bm25, [query], sizes)


class Vectors:
    """Stands in for an encoder: a query's vector is drawn by its hash, of few values, so that many scores are equal."""

    dimension = 8

    def queries(self, texts):
        return np.stack([self.drawn(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"), 1)[0] for text in texts])

    @staticmethod
    def drawn(seed: int, count: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(-2, 3, (count, 8)).astype(np.float32)


def dense(index, folder, kind: str, engine=FaissEngine) -> Dense:
    """Return a dense retriever over a FAISS index of this kind, with as many equal scores as may be."""
    made = faiss.index_factory(8, kind, faiss.METRIC_INNER_PRODUCT)
    held = Vectors.drawn(7, SIZE)
    made.train(np.tile(held, (20, 1)) if "PQ" in kind else held)
    made.add(held)
    faiss.write_index(made, str(folder / "i"))
    return Dense(engine(folder / "i"), Vectors(), Corpus(index))


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("Flat", TorchEngine), *((kind, FaissEngine) for kind in ("Flat", "SQ8", "IVF4,Flat", "IVF4,SQ8", "PCA4,Flat"))],
)
def test_answers_of_dense_indexes_that_look_at_the_same_vectors_for_every_k_are_nested(index, tmp_path, kind, engine):
    retriever = dense(index, tmp_path, kind, engine)
    assert retriever.nested_to == ANY_K
    assert nested(retriever, [f"query {i}" for i in range(30)], [1, 2, 5, 10, 30, 60, 70])


@pytest.mark.parametrize("kind", ["HNSW8,Flat", "HNSW8,SQ8", "IVF4,SQ4,Refine(Flat)", "PQ4x4fs"])
def test_of_approximate_indexes_whose_candidates_grow_with_k_nothing_is_promised(index, tmp_path, kind):
    assert dense(index, tmp_path, kind).nested_to == 0


class ByLength(Scorer):
    """Stands in for a model: many scores are equal."""

    def __init__(self):
        pass

    def scores(self, queries, passages):
        return [[float(len(text) % 3) for text in own] for own in passages]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 20))
def test_fused_and_reranked_answers_are_nested_to_their_depth_whatever_they_are_made_of(index, bm25, sizes, seed):
    inner = RandomPassages(Corpus(index))
    reranked = Reranked.__new__(Reranked)  # without a model from elsewhere
    reranked._scorer, reranked._retriever, reranked._depth, reranked.nested_to = ByLength(), inner, 6, 6
    for retriever in (Hybrid([inner, bm25], depth=6), reranked):
        assert retriever.nested_to == 6
        assert nested(retriever, [f"alpha {WORDS[seed % 6]} {seed}"], sizes)


def test_beyond_their_depth_they_are_not(index, bm25):
    hybrid = Hybrid([RandomPassages(Corpus(index)), bm25], depth=6)
    assert not nested(hybrid, [f"alpha {i}" for i in range(20)], [6, 25])


def test_what_each_of_the_others_promises(index):
    assert [Retriever.nested_to, RandomPassages.nested_to, WebSearch.nested_to, Milvus.nested_to] == [0, 0, 0, 0]
    assert not nested(RandomPassages(Corpus(index)), [f"query {i}" for i in range(20)], [5, 25])
    for retriever in (Nothing(), DummyRetriever([(str(i), "text") for i in range(9)])):
        assert retriever.nested_to == ANY_K
        assert nested(retriever, ["text", "x"], [1, 4, 9, 20])
