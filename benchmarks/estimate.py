"""What `rag-serving estimate` says of BM25's speed against the index itself, by the first 45,000 of its passages.

    python benchmarks/estimate.py --index INDEX [INDEX …]

The time of the processor that all queries take, on one thread and on as many as there are cores: what else runs does not count. The best
of `--rounds`, after one that maps the pages. A ratio above 1: the index is faster than estimated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from rag_serving.indexing.estimate import estimate
from rag_serving.indexing.speed import WORDS, K
from rag_serving.load import queries
from rag_serving.retrievers import load_index


def searched(index: Path, count: int, rounds: int) -> tuple[int, float, float]:
    """Return the number of passages, milliseconds a query on one thread, and queries a second on all cores."""
    texts, alone, together, size = queries(index, count, WORDS), [], [], 0
    for threads, taken in ((1, alone), (os.cpu_count() or 1, together)):
        retriever: Any = load_index(index, retriever="bm25", verify="never", threads=threads)
        size = retriever.size
        for _ in range(rounds + 1):
            started = time.process_time()
            retriever.retrieve([retriever.vocabulary.token_ids(text) for text in texts], K)
            taken.append((time.process_time() - started) / threads)
        retriever.close()
    return size, 1000 * min(alone[1:]) / len(texts), len(texts) / min(together[1:])


def main() -> None:
    """Print one JSON object per index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, nargs="+", required=True)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for index in options.index:
        passages, milliseconds, per_second = searched(index, options.queries, options.rounds)
        told = estimate(passages, index / "corpus.jsonl")[0]
        assert told.query_ms is not None
        assert told.queries_per_second_all_cores is not None
        print(
            json.dumps(
                {
                    "passages": passages,
                    "ms": round(milliseconds, 3),
                    "estimated_ms": round(told.query_ms, 3),
                    "per_second": round(per_second),
                    "estimated_per_second": round(told.queries_per_second_all_cores),
                    "ratios": [
                        round(told.query_ms / milliseconds, 2),
                        round(per_second / told.queries_per_second_all_cores, 2),
                    ],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
