"""Dense, hybrid, reranked and Milvus retrieval, each on the real engine."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_serving import IndexingError, ServingError
from rag_serving.indexing import DenseOptions, build_index
from rag_serving.indexing.synthetic import synthetic
from rag_serving.retrievers import load_index
from rag_serving.retrievers.base import Hit, Retriever, shown
from rag_serving.retrievers.encoder import Encoder, profile_of
from rag_serving.retrievers.hybrid import Hybrid
from tests.servers import minilm

TEXTS = {
    "rhine": "Cologne\nCologne is a large city on the river Rhine in Germany.",
    "paris": "Paris\nThe capital of France has the Eiffel Tower.",
    "bread": "Bread\nBakers mix flour, water and yeast.",
    "whale": "Blue whale\nThe largest animal that has ever lived.",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join(json.dumps({"id": i, "contents": text}) + "\n" for i, text in TEXTS.items()))
    return path


@pytest.fixture(scope="module")
def index(corpus):
    out = corpus.parent / "index"
    build_index(corpus, out, engines=("bm25", "dense"), dense=DenseOptions(minilm()))
    return out


def ids(hits):
    return [hit.id for hit in hits]


def test_dense_finds_what_is_meant_not_what_is_written(index):
    dense = load_index(index, retriever="dense")
    found = dense.search(["who bakes loaves", "biggest creature", "a German town"], 2)
    assert [hits[0].id for hits in found] == ["bread", "whale", "rhine"]
    assert all(type(hit.score) is float for hits in found for hit in hits)


def test_asking_for_more_than_there_is_returns_every_passage_once(index):
    assert sorted(ids(load_index(index, retriever="dense").search(["x"], 100)[0])) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["Flat", "HNSW32", "SQ8", "IVF4,Flat", "IVF4,SQ8", "PQ8"])
def test_every_faiss_type_is_built_and_finds_what_exact_search_finds_first(tmp_path, kind):
    path = tmp_path / "c.jsonl"
    with path.open("w") as file:
        for _, row in zip(range(300), synthetic(6), strict=False):
            file.write(json.dumps(row) + "\n")
    build_index(path, tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm(), kind, max_length=16))
    retriever = load_index(tmp_path / "i", nprobe=4)
    rows = [json.loads(line) for line in path.read_text().splitlines()][:20]
    found = retriever.search([row["contents"] for row in rows], 5)
    right = sum(row["id"] in ids(hits) for row, hits in zip(rows, found, strict=True))
    assert right >= (15 if kind == "PQ8" else 19)


def test_exact_search_in_torch_equals_faiss(index):
    queries = ["largest animal", "flour and yeast", "tower", "river"]
    faiss, torch = (
        load_index(index, retriever="dense", vector_engine=engine).search(queries, 3) for engine in ("faiss", "torch")
    )
    assert [ids(hits) for hits in faiss] == [ids(hits) for hits in torch]
    assert [[h.score for h in hits] for hits in faiss] == [pytest.approx([h.score for h in hits], abs=1e-5) for hits in torch]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40), k=st.integers(1, 12), chunk=st.integers(1, 15), devices=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_torch_search_in_chunks_on_any_number_of_devices_equals_brute_force(tmp_path_factory, rows, k, chunk, devices, seed):
    import faiss

    from rag_serving.retrievers.dense import TorchEngine

    generator = np.random.default_rng(seed)
    vectors, queries = (generator.standard_normal((n, 8), dtype=np.float32) for n in (rows, 3))
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    path = tmp_path_factory.mktemp("t") / "x.index"
    faiss.write_index(index, str(path))
    scores, found = TorchEngine(path, ["cpu"] * devices, chunk).search(queries, min(k, rows))
    wanted = np.argsort(-(queries @ vectors.T), axis=1)[:, : min(k, rows)]
    assert (found == wanted).all()
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, wanted, 1), atol=1e-5)


def test_several_devices_are_for_the_torch_engine_which_answers_the_same(index):
    with pytest.raises(ValueError, match="must be one, but for vector_engine torch"):
        load_index(index, retriever="dense", device="cpu, cpu")
    query = ["largest animal"]
    found = load_index(index, retriever="dense", device="cpu, cpu", vector_engine="torch").search(query, 3)[0]
    wanted = load_index(index, retriever="dense").search(query, 3)[0]
    assert ids([*found]) == ids(wanted)
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-5)


def test_the_torch_engine_refuses_an_index_without_exact_vectors(corpus, tmp_path):
    build_index(corpus, tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm(), "SQ8"))
    with pytest.raises(IndexingError, match="needs the exact vectors"):
        load_index(tmp_path / "i", vector_engine="torch")


@pytest.mark.parametrize(
    ("model", "query", "passage", "pooling"),
    [
        ("intfloat/e5-base-v2", "query: ", "passage: ", "mean"),
        ("/models/multilingual-e5-large", "query: ", "passage: ", "mean"),
        ("BAAI/bge-large-en-v1.5", "Represent this sentence for searching relevant passages: ", "", "cls"),
        ("BAAI/bge-base-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", "", "cls"),
        ("BAAI/bge-m3", "", "", "cls"),
        ("sentence-transformers/all-MiniLM-L6-v2", "", "", "mean"),
        ("acme/horse5-model", "", "", "mean"),
    ],
)
def test_prefixes_and_pooling_follow_the_models_name(model, query, passage, pooling):
    known = profile_of(model)
    assert (known.query_prefix, known.passage_prefix, known.pooling) == (query, passage, pooling)


def test_prefixes_and_pooling_can_be_overridden():
    plain = Encoder(minilm())
    assert np.allclose(np.linalg.norm(plain.queries(["a", "b"]), axis=1), 1.0, atol=1e-5)
    e5 = Encoder(minilm(), name="e5-small")
    assert np.allclose(e5.queries(["x"]), plain.queries(["query: x"]), atol=1e-6)
    assert np.allclose(e5.passages(["x"]), plain.queries(["passage: x"]), atol=1e-6)
    own = Encoder(minilm(), name="e5-small", query_prefix="")
    assert np.allclose(own.queries(["x"]), plain.queries(["x"]), atol=1e-6)
    cls = Encoder(minilm(), pooling="cls")
    assert not np.allclose(cls.queries(["x"]), plain.queries(["x"]), atol=1e-2)
    assert np.allclose(np.linalg.norm(cls.queries(["x"]), axis=1), 1.0, atol=1e-5)
    with pytest.raises(ServingError, match="mean, cls"):
        Encoder(minilm(), pooling="median")


def test_an_index_is_searched_with_the_prefix_it_was_built_with_unless_told_otherwise(corpus, tmp_path):
    build_index(corpus, tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm(), query_prefix="find: "))
    assert load_index(tmp_path / "i")._encoder.query_prefix == "find: "
    assert load_index(tmp_path / "i", query_prefix="")._encoder.query_prefix == ""


class Fixed(Retriever):
    """Returns one ranking whatever is asked."""

    size = 9

    def __init__(self, ranking):
        self.ranking = ranking

    def search(self, queries, k):
        return [[Hit(i, f"text {i}", 1.0) for i in self.ranking][:k] for _ in queries]


@given(st.lists(st.permutations("abcdefg").map(lambda p: list(p)[:5]), min_size=1, max_size=3), st.integers(1, 7))
def test_reciprocal_rank_fusion_is_its_formula_with_ties_in_one_order(rankings, k):
    found = Hybrid([Fixed(ranking) for ranking in rankings], depth=5, k0=60).search(["q"], k)[0]
    score = {
        i: math.fsum(1 / (60 + r.index(i) + 1) for r in rankings if i in r) for i in "abcdefg" if any(i in r for r in rankings)
    }
    best = {i: min(r.index(i) for r in rankings if i in r) for i in score}
    assert ids(found) == sorted(score, key=lambda i: (-score[i], best[i], i))[:k]
    assert [hit.score for hit in found] == pytest.approx([score[hit.id] for hit in found])
    assert found == Hybrid([Fixed(ranking) for ranking in reversed(rankings)], depth=5).search(["q"], k)[0]


def test_an_index_of_both_kinds_is_searched_as_a_hybrid(index):
    hybrid = load_index(index)
    assert isinstance(hybrid, Hybrid)
    hybrid.warm_up()
    found = hybrid.search(["yeast", "biggest creature"], 2)
    assert (found[0][0].id, found[1][0].id) == ("bread", "whale")


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A tiny cross-encoder of random weights: its scores mean nothing, but they are scores."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross")
    words = AutoTokenizer.from_pretrained(minilm())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def test_reranking_orders_the_first_hits_by_the_cross_encoders_score(index, cross_encoder):
    from sentence_transformers import CrossEncoder

    query = "largest animal"
    reranked = load_index(index, retriever="dense", reranker=cross_encoder, rerank_depth=3)
    reranked.warm_up()
    candidates = load_index(index, retriever="dense").search([query], 3)[0]
    scores = CrossEncoder(cross_encoder, num_labels=1).predict([(query, hit.contents) for hit in candidates])
    wanted = [hit.id for _, hit in sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])]
    found = reranked.search([query, "flour"], 2)
    assert ids(found[0]) == wanted[:2]
    assert [hit.score for hit in found[0]] == pytest.approx(sorted(scores.tolist(), reverse=True)[:2], abs=1e-5)
    assert len(found[1]) == 2
    with pytest.raises(ServingError, match="no reranker could be loaded from '/nowhere'"):
        load_index(index, reranker="/nowhere")


def test_a_model_that_gives_no_scores_is_refused_as_a_reranker(index, tmp_path):
    """As a cross-encoder it would get a head of random numbers, and nobody would see it."""
    with pytest.raises(ServingError, match=r"^'.*' \(BertModel\) gives no scores, so it cannot rerank"):
        load_index(index, reranker=minilm())
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    with pytest.raises(ServingError, match=r"\(SparseEncoder\) gives no scores"):
        load_index(index, reranker=str(tmp_path))


@pytest.fixture(scope="module")
def late_interaction(tmp_path_factory):
    """MiniLM's token vectors as a late-interaction model: untrained for it, but its similarities mean something."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize

    folder = str(tmp_path_factory.mktemp("late"))
    MultiVectorEncoder(modules=[Transformer(minilm()), MultiVectorMask(), Normalize("token_embeddings")]).save_pretrained(
        folder
    )
    return folder


def test_a_late_interaction_model_reranks_by_the_sum_of_each_query_tokens_best_product(index, late_interaction):
    from sentence_transformers import MultiVectorEncoder

    queries, model = ["largest animal", "yeast dough", "the river in a city"], MultiVectorEncoder(late_interaction)
    reranked = load_index(index, retriever="dense", reranker=late_interaction, rerank_depth=3)
    reranked.warm_up()
    for query, candidates, hits in zip(
        queries, load_index(index, retriever="dense").search(queries, 3), reranked.search(queries, 3), strict=True
    ):
        asked = np.asarray(model.encode_query(query))
        scores = {}
        for hit in candidates:
            scores[hit.id] = float((asked @ np.asarray(model.encode_document(hit.contents)).T).max(axis=1).sum())
        assert ids(hits) == sorted(scores, key=lambda name: -scores[name])
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-4)


@pytest.mark.parametrize("kind", ["pylate", "stanford"])
def test_checkpoints_of_pylate_and_of_stanfords_colbert_are_known_as_late_interaction_models(tmp_path, kind):
    from rag_serving.retrievers.rerank import LateInteractionScorer, _scorer

    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["HF_ColBERT" if kind == "stanford" else "BertModel"]}))
    if kind == "pylate":
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "ColBERT"}))
    assert _scorer(str(tmp_path)) is LateInteractionScorer


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://user:key@a.example:1/key?key=key#key", "https://a.example:1"),
        ("http://a.example:19530", "http://a.example:19530"),
        ("folder/passages.db", "folder/passages.db"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret_in_it(address, told):
    assert shown(address) == told


@pytest.mark.slow
def test_milvus_holds_passages_and_vectors_and_is_searched_like_an_index(corpus, tmp_path, capsys):
    from rag_serving.cli import main
    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import Settings

    uri = str(tmp_path / "milvus.db")
    command = ["index", "--corpus", str(corpus), "--milvus", uri, "--encoder", minilm(), "--collection", "demo"]
    assert main(command) == 0
    assert main(command) == 0  # again: nothing twice
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    opened = open_retriever(Settings(retriever="milvus", milvus_uri=uri, milvus_collection="demo", encoder=minilm()))
    assert opened.index_id == told["index_id"]
    assert opened.retriever.size == len(TEXTS)
    found = opened.retriever.search(["who bakes loaves", "biggest creature"], 2)
    assert [hits[0].id for hits in found] == ["bread", "whale"]
    exact = Encoder(minilm()).queries(["who bakes loaves"]) @ Encoder(minilm()).passages([TEXTS["bread"]]).T
    assert found[0][0].score == pytest.approx(float(exact[0, 0]), abs=1e-4)
    opened.retriever.close()
    with pytest.raises(ServingError, match="no collection 'other'"):
        open_retriever(Settings(retriever="milvus", milvus_uri=uri, milvus_collection="other", encoder=minilm()))


@pytest.fixture(scope="module")
def collection(corpus, tmp_path_factory):
    """A collection filled with settings that are not the model's own."""
    from rag_serving.cli import main

    uri = str(tmp_path_factory.mktemp("milvus") / "milvus.db")
    command = ["index", "--corpus", str(corpus), "--milvus", uri, "--encoder", minilm(), "--collection", "own"]
    own = ["--query-prefix", "find: ", "--passage-prefix", "text: ", "--pooling", "cls", "--max-length", "12"]
    assert main([*command, *own]) == 0
    return uri, command


@pytest.mark.slow
def test_a_collection_is_served_with_what_it_was_filled_with(collection, caplog):
    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import Settings

    def opened(**more):
        retriever = open_retriever(
            Settings(retriever="milvus", milvus_uri=collection[0], milvus_collection="own", **more)
        ).retriever
        retriever.close()
        return retriever._encoder

    wanted = Encoder(minilm(), query_prefix="find: ", pooling="cls", max_length=12)
    text = ["a question that has more than twelve words, which is where the passages were cut when they were sent"]
    assert np.allclose(opened().queries(text), wanted.queries(text), atol=1e-5)
    assert not caplog.records
    assert opened(query_prefix="other: ").query_prefix == "other: "
    assert "query_prefix is 'other: ', as the settings say; the index was built for 'find: '" in caplog.text


@pytest.mark.slow
def test_a_collection_of_another_encoder_is_refused_with_both_names(collection, cross_encoder, capsys, tmp_path):
    from rag_serving.cli import main
    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import Settings

    small = {"retriever": "milvus", "milvus_uri": collection[0], "milvus_collection": "own", "encoder": cross_encoder}
    with pytest.raises(ServingError, match=f"filled with the encoder '{minilm()}'; '{cross_encoder}' makes other vectors"):
        open_retriever(Settings(**small))
    copy = tmp_path / "another"  # its vectors are as long
    shutil.copytree(minilm(), copy)
    weights = copy / "model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: -value.flip(0).contiguous() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ServingError, match=f"filled with the encoder '{minilm()}'; '{copy}' makes other vectors"):
        open_retriever(Settings(**{**small, "encoder": str(copy)}))
    assert main(collection[1]) == 1  # with other settings into the same collection
    assert "was filled otherwise (query_prefix 'find: ', now ''" in capsys.readouterr().err


@pytest.mark.slow
def test_errors_of_milvus_tell_no_password_and_no_passage(collection, monkeypatch):
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import Settings

    def failing(*_, **__):
        raise MilvusException(5, "http://root:pass-word@host said: Bakers mix flour")

    opened = open_retriever(Settings(retriever="milvus", milvus_uri=collection[0], milvus_collection="own"))
    monkeypatch.setattr(MilvusClient, "search", failing)
    with pytest.raises(ServingError, match=r"collection 'own': MilvusException, code 5$"):
        opened.retriever.search(["flour"], 1)
    opened.retriever.close()
    monkeypatch.setattr(MilvusClient, "__init__", failing)
    with pytest.raises(ServingError, match=r"no Milvus at http://host:1 \(MilvusException, code 5\)"):
        open_retriever(Settings(retriever="milvus", milvus_uri="http://root:pass-word@host:1", milvus_token="root:pass-word"))


def test_random_passages_depend_on_the_query_alone(index):
    control = load_index(index, retriever="random")
    queries = [f"query {number}" for number in range(30)]
    found = control.search(queries, 2)
    assert found == load_index(index, retriever="random").search(queries, 2)
    assert all(len(set(ids(hits))) == 2 for hits in found)
    assert {hit.id for hits in found for hit in hits} == set(TEXTS)
    assert len({tuple(ids(hits)) for hits in found}) > 5
    assert all(hit.contents == TEXTS[hit.id] for hits in found for hit in hits)
    assert sorted(ids(control.search(["who bakes loaves"], 100)[0])) == sorted(TEXTS)


def test_the_control_that_finds_nothing_finds_nothing(index):
    control = load_index(index, retriever="nothing")
    assert control.search(["Cologne", "Paris"], 5) == [[], []]


def test_controls_are_served_and_an_answer_of_one_is_no_answer_of_another(index):
    import httpx

    from rag_serving.retrievers import open_retriever
    from rag_serving.settings import Settings
    from tests.servers import serving

    names = ("bm25", "random", "nothing")
    assert len({open_retriever(Settings(index=index, retriever=name)).fingerprint for name in names}) == 3
    for name, count in (("random", 2), ("nothing", 0)):
        with serving("--index", str(index), "--retriever", name) as (url, _):
            answer = httpx.post(f"{url}/v1/search", json={"queries": ["Cologne"], "top_k": 2}).json()
            assert [len(hits) for hits in answer["results"]] == [count]
