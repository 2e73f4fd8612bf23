"""BM25's kernel against bm25s' own on the same index, and against Lucene and tantivy on the same passages and queries, in one run.

    python benchmarks/bm25.py --make 1000000 --out passages.jsonl
    rag-serving index --corpus passages.jsonl --out index
    python benchmarks/bm25.py --index index [--lucene LUCENE_INDEX --jar anserini-fatjar.jar] [--tantivy TANTIVY_INDEX]

One thread each, one query after the other, the engines in turn, `--rounds` times; told is the median. Lucene needs `pyjnius`, and an
index by `java -cp JAR io.anserini.index.IndexCollection -collection JsonCollection -generator DefaultLuceneDocumentGenerator -input FOLDER
-index OUT`; tantivy's index is made here, if it does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

Ask = Callable[[str], list[float]]  # a query → the scores of what was found


def _passages(part: tuple[int, int, int]) -> str:
    from rag_serving.indexing.synthetic import synthetic

    seed, start, count = part
    return "".join(json.dumps(row) + "\n" for row in islice(synthetic(100, seed, start), count))


def make(count: int, out: Path, size: int = 50_000) -> None:
    """Write made-up passages of 100 words, by all cores."""
    parts = [(start // size, start, min(size, count - start)) for start in range(0, count, size)]
    with Pool() as pool, out.open("w", encoding="utf-8") as file, tqdm(total=count, unit="passage", disable=None) as bar:
        for text, part in zip(pool.imap(_passages, parts), parts, strict=True):
            file.write(text)
            bar.update(part[2])


def ours(index: Path, k: int) -> Ask:
    """Return our retriever, up to rows and scores."""
    from rag_serving.retrievers import load_index

    retriever: Any = load_index(index, retriever="bm25", verify="never", threads=1)
    retriever.warm_up()
    return lambda query: retriever.retrieve([retriever.vocabulary.token_ids(query)], k)[0][1]


def bm25s(index: Path, k: int) -> Ask:
    """Return bm25s' numba backend on the same files."""
    from bm25s import BM25

    from rag_serving.vocabulary import Vocabulary

    engine, vocabulary = BM25.load(str(index / "bm25"), mmap=True), Vocabulary(index / "bm25")
    engine.backend, rows = "numba", np.arange(engine.scores["num_docs"], dtype=np.int32)

    def ask(query: str) -> list[float]:
        ids = vocabulary.token_ids(query)
        return engine.retrieve([ids], corpus=rows, k=k, show_progress=False, n_threads=1)[1][0].tolist() if ids else []

    return ask


def lucene(index: Path, jar: Path, k: int) -> Ask:
    """Return Anserini's searcher."""
    import jnius_config

    jnius_config.set_classpath(str(jar))
    from jnius import autoclass

    searcher = autoclass("io.anserini.search.SimpleSearcher")(str(index))
    searcher.set_bm25(1.5, 0.75)
    return lambda query: [hit.score for hit in searcher.search(query, k)]


def tantivy(index: Path, source: Path, k: int) -> Ask:
    """Return tantivy with English stems and without stop words, its index made of the corpus if it does not exist."""
    import tantivy as library
    from bm25s.stopwords import STOPWORDS_EN

    from rag_serving.indexing import read_corpus

    schema = library.SchemaBuilder().add_text_field("contents", tokenizer_name="en_stem", index_option="freq").build()
    if not index.exists():
        index.mkdir(parents=True)
        made = library.Index(schema, str(index))
        writer = made.writer(1 << 30, os.cpu_count() or 1)
        for passage in tqdm(read_corpus(source / "corpus.jsonl", "flashrag"), desc="tantivy", disable=None):
            writer.add_document(library.Document(contents=passage["contents"]))
        writer.commit()
        writer.wait_merging_threads()
    opened = library.Index.open(str(index))
    searcher = opened.searcher()

    def ask(query: str) -> list[float]:
        # its query language gives quotation marks and others a meaning; it knows no stop words, which the others leave out
        words = [word for word in re.findall(r"\w+", query.lower()) if word not in STOPWORDS_EN]
        return [score for score, _ in searcher.search(opened.parse_query(" ".join(words), ["contents"]), k).hits]

    return ask


def main() -> None:
    """Make passages, or measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--lucene", type=Path)
    parser.add_argument("--jar", type=Path)
    parser.add_argument("--tantivy", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--words", type=int, default=9, help="of a query, a third of them stop words (default 9)")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.make:
        return make(options.make, options.out)
    engines: dict[str, Ask] = {"ours": ours(options.index, options.k), "bm25s": bm25s(options.index, options.k)}
    if options.lucene:
        engines["lucene"] = lucene(options.lucene, options.jar, options.k)
    if options.tantivy:
        engines["tantivy"] = tantivy(options.tantivy, options.index, options.k)
    from rag_serving.load import queries

    asked = queries(options.index, options.queries, options.words)
    equal = sum(
        np.array_equal(np.float32(engines["ours"](query)), np.float32([s for s in engines["bm25s"](query) if s > 0]))
        for query in tqdm(asked, desc="comparing scores", disable=None)
    )
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for number, (name, ask) in enumerate(list(engines.items()) * (options.rounds + 1)):
        each = []
        for query in asked:
            started = time.perf_counter()
            ask(query)
            each.append(1000 * (time.perf_counter() - started))
        if number >= len(engines):  # the first round maps the pages
            taken[name].append(statistics.mean(each))
            p50, p99 = statistics.median(each), sorted(each)[int(0.99 * len(each))]
            print(f"{name}: mean {taken[name][-1]:.2f}, p50 {p50:.2f}, p99 {p99:.2f} ms", file=sys.stderr)
    milliseconds = {name: statistics.median(rounds) for name, rounds in taken.items()}
    ratios = {f"{name}/ours": round(value / milliseconds["ours"], 2) for name, value in milliseconds.items() if name != "ours"}
    shown = {name: round(value, 3) for name, value in milliseconds.items()}
    print(json.dumps({"k": options.k, "queries": len(asked), "equal_scores": equal, "ms_per_query": shown, **ratios}))
    return None


if __name__ == "__main__":
    main()
