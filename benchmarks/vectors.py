"""Types of FAISS indexes against exact search: recall, time, bytes. On one thread, over a dense index of type Flat.

    rag-serving index --corpus passages.jsonl --out index --engine dense --encoder ENCODER
    python benchmarks/vectors.py --index index --questions questions.jsonl [--types SQ8 "RaBitQfs,Refine(SQ8)"]

Recall: the share of the exact first `-k` passages that are found. Milliseconds: of a question, its vector known, in one batch of all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_serving.indexing.dense import encoder_of, training_vectors
from rag_serving.indexing.manifest import read_manifest
from rag_serving.retrievers.dense import FaissEngine, read_faiss
from research_rl.questions import read_questions

TYPES = ("Flat", "SQ8", "RaBitQfs", "RaBitQfs,Refine(SQ8)", "PQ48np", "HNSW32,SQ8", "IVF64,SQ8")


def measured(engine: FaissEngine, queries: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Return the rows found, and milliseconds of a query."""
    engine.search(queries[:9], k)
    started = time.perf_counter()
    _, rows = engine.search(queries, k)
    return rows, 1000 * (time.perf_counter() - started) / len(queries)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--most", type=int, default=1_000, help="questions (default 1000)")
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--refine", type=int, nargs="+", default=[10])
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("-k", type=int, default=5)
    options = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    settings: dict[str, Any] = read_manifest(options.index)["engines"]["dense"]
    path = options.index / "dense" / settings["file"]
    owner = read_faiss(path)  # keeps the vectors alive
    flat: Any = faiss.downcast_index(owner)
    held = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    questions = [question["question"] for question in read_questions(options.questions)][: options.most]
    queries = encoder_of(settings, "cpu").queries(questions)
    exact, _ = measured(FaissEngine(path, threads=1), queries, options.k)
    print(f"{flat.ntotal} vectors of {flat.d} numbers, {len(queries)} questions, k = {options.k}")
    print(f"{'type':<24}{'refine':>7}{'recall':>8}{'ms':>8}{'bytes':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in tqdm(options.types, desc="building", disable=None):
            index = faiss.index_factory(flat.d, kind, faiss.METRIC_INNER_PRODUCT)
            index.train(held[:: max(1, len(held) // training_vectors(kind))])
            index.add(held)
            file = Path(folder) / "index"
            faiss.write_index(index, str(file))
            for refine in options.refine if "Refine" in kind else options.refine[:1]:
                rows, took = measured(FaissEngine(file, options.nprobe, refine=refine, threads=1), queries, options.k)
                recall = np.mean([len(set(a) & set(b)) / options.k for a, b in zip(exact, rows, strict=True)])
                each = file.stat().st_size / len(held)
                print(f"{kind:<24}{refine if 'Refine' in kind else '':>7}{recall:>8.3f}{took:>8.3f}{each:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
