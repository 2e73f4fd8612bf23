"""Dense retrieval: models are given their own prompts, equal scores an order, wrapped indexes their settings, adopted ones a proof."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from rag_serving import IndexingError, ServingError
from rag_serving.corpus import Corpus
from rag_serving.indexing import DenseOptions, build_index, read_manifest
from rag_serving.indexing.estimate import VECTOR_BYTES
from rag_serving.retrievers import load_index, open_retriever
from rag_serving.retrievers.dense import Dense, FaissEngine, TorchEngine
from rag_serving.retrievers.encoder import Encoder, profile_of
from rag_serving.settings import Settings
from tests.servers import minilm

CONFIG = "config_sentence_transformers.json"
QUESTIONS = ["who wrote faust", "the largest animal"]
TEXTS = [f"Page {i}\n{'river ' * (i % 7)}number {i * i} of the city" for i in range(40)]


def model(folder: Path, prompts: dict[str, str] | None = None) -> str:
    """Return a copy of MiniLM that has these prompts in its own files."""
    shutil.copytree(minilm(), folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "prompts": prompts or {}}))
    return str(folder)


@pytest.mark.parametrize(
    "prompts",
    [
        {"query": "task: search result | query: ", "document": "title: none | text: "},
        {"query": "Instruct: find passages\nQuery:", "passage": "p: "},
        {"query": "search_query: "},
    ],
)
def test_a_models_own_prompts_are_used_as_sentence_transformers_uses_them(tmp_path, prompts):
    folder = model(tmp_path / "some-model", prompts)
    theirs, ours = SentenceTransformer(folder, device="cpu"), Encoder(folder)
    # its encode_document looks at "document" alone, which is "" unless the model says otherwise
    passage = next(iter(prompts.keys() - {"query"}), "document")
    assert np.allclose(ours.queries(QUESTIONS), theirs.encode_query(QUESTIONS, normalize_embeddings=True), atol=1e-6)
    expected = theirs.encode(TEXTS[:3], prompt_name=passage, normalize_embeddings=True)
    assert np.allclose(ours.passages(TEXTS[:3]), expected, atol=1e-6)
    assert ours.query_prefix == prompts["query"]


def test_what_is_asked_for_beats_the_models_files_and_those_beat_its_name(tmp_path):
    folder = model(tmp_path / "e5-base", {"query": "own: "})
    assert Encoder(folder).query_prefix == "own: "
    assert Encoder(folder, query_prefix="given: ").query_prefix == "given: "
    silent = model(tmp_path / "again" / "e5-base")
    assert (Encoder(silent).query_prefix, Encoder(silent).passage_prefix) == ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("name", "query", "passage", "pooling"),
    [
        ("/data/e5-experiments/my-model", "", "", "mean"),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: ", "mean"),
        ("google/embeddinggemma-300m", "task: search result | query: ", "title: none | text: ", "mean"),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", "", "cls"),
        ("Alibaba-NLP/gte-base-en-v1.5", "", "", "cls"),
    ],
)
def test_a_name_tells_by_its_last_part_alone(name, query, passage, pooling):
    known = profile_of(name)
    assert (known.query_prefix, known.passage_prefix, known.pooling) == (query, passage, pooling)


def test_models_trained_without_normalising_are_not_normalised(tmp_path):
    folder = model(tmp_path / "contriever-msmarco")
    for path in ("modules.json", "1_Pooling"):  # Contriever comes as a plain transformers model
        target = Path(folder) / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    lengths = np.linalg.norm(Encoder(folder).passages(TEXTS[:5]), axis=1)
    assert np.ptp(lengths) > 0.01


def test_dprs_two_encoders_are_not_normalised_and_refused_in_a_form_that_would_get_random_weights(tmp_path):
    for part in ("ctx", "question"):
        known = profile_of(f"sentence-transformers/facebook-dpr-{part}_encoder-single-nq-base")
        assert (known.query_prefix, known.passage_prefix, known.pooling, known.normalize) == ("", "", "cls", False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpr", "architectures": ["DPRContextEncoder"]}))
    with pytest.raises(
        ServingError, match="in the form of Facebook's DPR; give the same model in the form of sentence-transformers"
    ):
        Encoder(str(tmp_path))


def vectors(count: int, dimension: int = 32, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["IVF32,Flat", "PCA24,IVF32,Flat", "IVF32,SQ4,Refine(Flat)"])
def test_nprobe_reaches_an_ivf_index_through_what_wraps_it(tmp_path, kind):
    index = faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)
    held = vectors(3_000)
    index.train(held)
    index.add(held)
    faiss.write_index(index, str(tmp_path / "i"))
    queries = vectors(50, seed=1)
    exact = np.argsort(-(queries @ held.T), axis=1)[:, :5]

    def recall(nprobe: int) -> float:
        _, rows = FaissEngine(tmp_path / "i", nprobe=nprobe).search(queries, 5)
        return float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, exact, strict=True)]))

    assert recall(32) > recall(1) + 0.1
    if kind in ("IVF32,Flat", "IVF32,SQ4,Refine(Flat)"):
        assert recall(32) > 0.99


def test_binary_codes_find_what_whole_vectors_do_once_enough_candidates_are_compared_again(tmp_path):
    """RaBitQfs,Refine(SQ8): one bit a number is searched, one byte a number decides."""
    held, queries = vectors(5_000, 64), vectors(50, 64, seed=1)
    index = faiss.index_factory(64, "RaBitQfs,Refine(SQ8)", faiss.METRIC_INNER_PRODUCT)
    index.train(held)
    index.add(held)
    faiss.write_index(index, str(tmp_path / "i"))
    exact = np.argsort(-(queries @ held.T), axis=1)[:, :5]

    def recall(refine: int) -> float:
        _, rows = FaissEngine(tmp_path / "i", refine=refine).search(queries, 5)
        return float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, exact, strict=True)]))

    assert recall(1) < 0.6
    assert recall(100) > 0.95


_OWN = """
import faiss, sys
from rag_serving.retrievers.dense import read_faiss

def own():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

read_faiss(sys.argv[1])  # what the first call takes once
kept = []
for path in sys.argv[1:]:
    before = own()
    kept.append(read_faiss(path))
    print(own() - before)
"""


def test_what_a_vector_takes_of_memory_and_file_is_as_the_estimate_says(tmp_path):
    count, dimension = 20_000, 128
    held = vectors(count, dimension)
    kinds = {kind: size(dimension) for kind, size in VECTOR_BYTES.items()}
    for number, kind in enumerate(kinds):
        smaller = kind.replace("4096", "64").replace(
            "PQ48", "PQ16np"
        )  # 48 does not divide 128; np: nothing that takes a minute to train
        index = faiss.index_factory(dimension, smaller, faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in kind:
            faiss.ParameterSpace().set_index_parameter(index, "efConstruction", 4)
        index.train(held[:2_000])
        index.add(held)
        faiss.write_index(index, str(tmp_path / str(number)))
    files = [tmp_path / str(number) for number in range(len(kinds))]
    told = subprocess.run(
        [sys.executable, "-c", _OWN, *map(str, files)], capture_output=True, text=True, check=True
    ).stdout.split()
    for (kind, (own, mapped)), file, measured in zip(kinds.items(), files, map(int, told), strict=True):
        mapped -= 32 if "PQ48" in kind else 0
        assert file.stat().st_size / count == pytest.approx(own + mapped, rel=0.1, abs=9), kind  # 9: what it has once
        assert measured / count == pytest.approx(own, rel=0.3, abs=12), kind


@pytest.mark.parametrize("kind", ["HNSW8", "HNSW8,SQ8"])
def test_a_graph_is_built_with_the_candidates_that_are_asked_for(tmp_path, kind):
    rows = [{"id": str(i), "contents": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(
        tmp_path / "c.jsonl", tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm(), kind, ef_construction=77)
    )
    built = faiss.downcast_index(faiss.read_index(str(next((tmp_path / "i" / "dense").glob("*.index")))))
    assert built.hnsw.efConstruction == 77


class Given:
    """Stands in for an encoder: the vectors of the queries are given by their number."""

    dimension = 32

    def queries(self, texts):
        return vectors(9, seed=5)[[int(text) for text in texts]]


@pytest.mark.parametrize("engine", [FaissEngine, TorchEngine])
def test_equal_scores_are_ordered_by_row_so_that_five_of_ten_are_the_five(tmp_path, engine):
    held = np.repeat(vectors(6), 20, axis=0)[np.random.default_rng(2).permutation(120)]
    index = faiss.IndexFlatIP(32)
    index.add(np.ascontiguousarray(held))
    faiss.write_index(index, str(tmp_path / "i"))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"id": str(i), "contents": f"p {i}"}) + "\n" for i in range(120)))
    build_index(tmp_path / "c.jsonl", tmp_path / "index")
    dense = Dense(engine(tmp_path / "i"), Given(), Corpus(tmp_path / "index"))
    for query in map(str, range(9)):
        found = {k: dense.search([query], k)[0] for k in (5, 10, 30, 120)}
        for k in (5, 10, 30):
            assert found[k] == found[120][:k]
        keys = [(-hit.score, int(hit.id)) for hit in found[120]]
        assert keys == sorted(keys)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "c.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def adopted(corpus: Path, folder: Path, made: np.ndarray, encoder: str = "", **options) -> Path:
    index = faiss.IndexFlatIP(made.shape[1])
    index.add(np.ascontiguousarray(made))
    faiss.write_index(index, str(folder / "made.index"))
    given = DenseOptions(encoder or minilm(), adopt=str(folder / "made.index"), **options)
    build_index(corpus, folder / "index", engines=("dense",), dense=given)
    return folder / "index"


def test_an_index_that_is_this_corpus_by_this_encoder_is_adopted_without_a_copy(corpus, tmp_path):
    index = adopted(corpus, tmp_path, Encoder(minilm()).passages(TEXTS))
    assert next((index / "dense").iterdir()).samefile(tmp_path / "made.index")
    assert load_index(index).search([TEXTS[7]], 1)[0][0].id == "7"


def test_adopted_vectors_name_the_index_for_they_do_not_follow_from_its_settings(corpus, tmp_path):
    made = Encoder(minilm()).passages(TEXTS)
    for name, scale in (("one", 1.0), ("again", 1.0), ("other", 1.001)):
        (tmp_path / name).mkdir()
        adopted(corpus, tmp_path / name, scale * made)
    one, again, other = (read_manifest(tmp_path / name / "index")["index_id"] for name in ("one", "again", "other"))
    assert one == again != other


def test_what_changes_the_answers_of_an_index_changes_the_name_under_which_they_are_kept(corpus, tmp_path):
    build_index(corpus, tmp_path / "i", engines=("dense",), dense=DenseOptions(minilm()))

    def fingerprint(**options):
        return open_retriever(Settings(index=tmp_path / "i", **options)).fingerprint

    changed = [{}, {"refine": 20}, {"nprobe": 1}, {"ef_search": 9}, {"vector_engine": "torch"}, {"query_prefix": "q: "}]
    assert len({fingerprint(**options) for options in changed}) == len(changed)
    assert fingerprint(max_batch=3) == fingerprint()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda encoder: encoder.passages(TEXTS, "passage: "), r"with --passage-prefix 'passage: ' instead of '' they do"),
        (lambda encoder: encoder.pooled("cls").passages(TEXTS), r"with --pooling cls they do"),
        (lambda encoder: encoder.passages(TEXTS)[::-1], r"another order: passage 0 of the corpus is row 39 of the index"),
        (lambda encoder: vectors(40, 384), r"another encoder or another corpus"),
    ],
)
def test_an_index_that_is_not_is_refused_and_told_why(corpus, tmp_path, made, says):
    with pytest.raises(IndexingError, match=says):
        adopted(corpus, tmp_path, made(Encoder(minilm(), max_length=256)))
    assert not (tmp_path / "index").exists()


def test_faiss_takes_as_many_threads_as_it_may_in_whichever_thread_searches(tmp_path):
    index = faiss.IndexFlatIP(2)
    index.add(np.eye(2, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "flat.index"))
    engine = FaissEngine(tmp_path / "flat.index", threads=3)
    with ThreadPoolExecutor(1) as other:
        other.submit(engine.search, np.eye(2, dtype=np.float32), 1).result()
        assert other.submit(faiss.omp_get_max_threads).result() == 3
