"""`rag-serving estimate`: memory, disk, time and speed of an index of N passages, before anything is built.

BM25's costs are measured, not assumed: two small indexes of sampled passages (yours, or synthetic ones) are built in processes of their
own, and their costs are extrapolated; its speed is measured over made-up postings (`speed`). A FAISS index's bytes follow from its type.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from joblib import cpu_count

from rag_serving import IndexingError
from rag_serving.indexing.bm25 import MEMORY
from rag_serving.indexing.dense import training_vectors
from rag_serving.indexing.formats import Passage, read_corpus
from rag_serving.indexing.metadata import METADATA_BYTES
from rag_serving.indexing.postings import POSTING_BYTES
from rag_serving.indexing.speed import WORDS, K, measure
from rag_serving.indexing.synthetic import synthetic
from rag_serving.vocabulary import HASHES

SAMPLES = (15_000, 45_000)  # passages of the two trial builds
# bytes that a vector of d numbers takes, of the process's own and of the mapped file; in an IVF list 8 of them are its id; HNSW32: 64
# links of 4 bytes at the bottom, few above
VECTOR_BYTES: dict[str, Callable[[int], tuple[int, int]]] = {
    "Flat": lambda d: (0, 4 * d),
    "SQ8": lambda d: (0, d),
    "HNSW32": lambda d: (12, 4 * d + 260),
    "HNSW32,SQ8": lambda d: (12, d + 260),
    "IVF4096,Flat": lambda d: (0, 4 * d + 8),
    "IVF4096,SQ8": lambda d: (0, d + 8),
    "IVF4096,PQ48": lambda d: (0, 56),
    "RaBitQfs,Refine(SQ8)": lambda d: (d // 8 + 8, d),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds; None: not known without --encoder. How fast it searches is told of BM25 only: milliseconds of a query on one
    thread, and queries a second on it and on all cores.
    """

    index: str
    build_memory: int
    serve_memory: int  # of the process's own
    serve_pages: int  # of its files: shared, and given back when memory is short; with fewer in memory it is slower
    disk: int
    build_seconds: float | None
    query_ms: float | None = None
    queries_per_second: float | None = None
    queries_per_second_all_cores: float | None = None


def estimate(
    passages: int | None, corpus: Path | None = None, words: int = 100, encoder: str | None = None, dimension: int = 768
) -> list[Estimate]:
    """Return one estimate per kind of index. Without `passages`, their number is that of `corpus`: estimated from its size and a sample of
    it, or counted where the size says little (.gz, .parquet, a folder).

    Raises:
        IndexingError: neither a number nor a corpus was given.
    """
    if passages is None and corpus is None:
        raise IndexingError("give --passages N, or --corpus FILE to count by")
    sample = list(islice(read_corpus(corpus, metadata=True) if corpus else synthetic(words), SAMPLES[1]))
    if not sample:
        raise IndexingError(f"{corpus} has no passages")
    corpus_bytes = sum(map(_bytes, sample)) / len(sample)
    if passages is None:
        assert corpus is not None
        if corpus.suffix == ".gz" or corpus.is_dir() or corpus.suffix == ".parquet":
            passages = sum(1 for _ in read_corpus(corpus))
        else:
            passages = len(sample) if len(sample) < SAMPLES[1] else int(corpus.stat().st_size / corpus_bytes)
    for row in sample:
        if _bytes(row.get("metadata")) > METADATA_BYTES:  # left out by an index
            del row["metadata"]
    corpus_disk = int(passages * (sum(map(_bytes, sample)) / len(sample) + 8))
    dense = _dense(sample, passages, corpus_disk, encoder, dimension)  # first: their memory begins with that of this process
    return [_bm25(sample, passages), *dense]


def _bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")) + 1


@dataclass(frozen=True)
class Trial:
    """What building and loading an index of `passages` took, by one process: bytes, seconds, and the number of its stems and postings."""

    passages: int
    stems: int
    postings: int
    memory: float
    seconds: float
    corpus: int
    arrays: int
    vocabulary: int
    loaded: float


def extrapolated(first: Trial, second: Trial, passages: int, memory: int, processes: int) -> Estimate:
    """Return the costs of an index of `passages`.

    Passages and postings grow with the corpus, the vocabulary as Heaps' law says, with the exponent of the two trials. A building process
    holds the vocabulary twice if it is alone, else once and each of the others once.
    """
    growth = passages / second.passages
    heaps = math.log(second.stems / first.stems) / math.log(second.passages / first.passages) if first.stems else 1.0
    stems = second.stems * growth ** min(1.0, max(0.0, heaps))

    def rest(trial: Trial) -> float:  # of the memory: what is the process's own and the vocabulary's
        return trial.memory - 24 * trial.passages - POSTING_BYTES * trial.postings

    a_stem = max(0.0, (rest(second) - rest(first)) / max(1, second.stems - first.stems))
    own = max(0.0, rest(second) - a_stem * second.stems)
    holders = 1 if processes == 1 else (processes + 1) / 2
    building = own * (1 if processes == 1 else processes + 1) + holders * a_stem * stems + 24 * passages
    a_passage = max(0.0, (second.seconds - first.seconds) / (second.passages - first.passages))
    seconds = second.seconds + a_passage * (passages - second.passages) / processes if growth > 1 else second.seconds * growth
    pages = growth * (second.corpus + second.arrays) + second.vocabulary * stems / second.stems
    return Estimate(
        "bm25",
        int(building + min(memory, POSTING_BYTES * second.postings * growth)),
        int(second.loaded + 4 * stems),
        int(pages),
        int(pages),
        seconds,
    )


def _bm25(sample: list[Passage], passages: int) -> Estimate:
    sizes = (max(1, len(sample) // 3), max(2, len(sample)))
    with tempfile.TemporaryDirectory() as folder:
        indexes = [Path(folder, name) for name in ("first", "second")]
        first, second = (_trial(sample[:size], index) for size, index in zip(sizes, indexes, strict=True))
        speed = measure(indexes[1], passages)
    told = extrapolated(first, second, passages, MEMORY, cpu_count())
    if speed is None:
        return told
    return replace(
        told,
        query_ms=speed.milliseconds,
        queries_per_second=1000 / speed.milliseconds,
        queries_per_second_all_cores=speed.per_second,
    )


def _trial(sample: list[Passage], out: Path) -> Trial:
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row, default=str) + "\n" for row in sample))
    command = ["-m", "rag_serving.cli", "index", "--corpus", str(source), "--out", str(out), "--processes", "1"]
    memory, seconds = _measured(command)
    loaded, _ = _measured(["-c", f"from rag_serving.retrievers import load_index; load_index({str(out)!r})"])
    sizes = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    arrays = sum(size for name, size in sizes.items() if name.endswith(".csc.index.npy"))
    corpus = sum(size for name, size in sizes.items() if name.startswith(("corpus.", "metadata.")))
    stems, postings = sizes[HASHES] // 16, sizes["data.csc.index.npy"] // 4
    return Trial(len(sample), stems, postings, memory, seconds, corpus, arrays, sum(sizes.values()) - arrays - corpus, loaded)


_MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.returncode)
"""


def _measured(arguments: list[str]) -> tuple[float, float]:
    """Run Python; return the process's peak resident bytes and its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    kilobytes, code = map(int, done.stdout.split()[-2:])
    if code:
        raise IndexingError(f"the trial build failed: {(done.stderr.strip().splitlines() or [f'exit code {code}'])[-1]}")
    return kilobytes * 1024.0, time.perf_counter() - started


def _dense(sample: list[Passage], passages: int, corpus_disk: int, encoder: str | None, dimension: int) -> list[Estimate]:
    per_passage = None
    if encoder:
        from rag_serving.retrievers.encoder import Encoder

        model = Encoder(encoder, max_length=256)
        dimension, texts = model.dimension, [row["contents"] for row in sample[:512]]
        model.passages(texts[:64])
        started = time.perf_counter()
        model.passages(texts)
        per_passage = (time.perf_counter() - started) / len(texts)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = []
    for kind, size in VECTOR_BYTES.items():
        own, mapped = (passages * count for count in size(dimension))
        mapped += 4096 * dimension * 4 if kind.startswith("IVF") else 0
        seconds = None if per_passage is None else passages * (per_passage + _adding(kind, dimension))
        # while indexing: the index, and the vectors it is trained on (as many for every size of corpus)
        trained = 0 if kind in ("Flat", "HNSW32") else min(passages, training_vectors(kind)) * dimension * 4
        building = base + own + mapped + trained
        disk = corpus_disk + own + mapped
        found.append(Estimate(f"dense {kind}", building, base + own, corpus_disk + mapped, disk, seconds))
    return found


def _adding(kind: str, dimension: int, count: int = 5_000) -> float:
    """Return seconds to add one vector (training left out: it does not grow with the corpus)."""
    import faiss
    import numpy as np

    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    index = faiss.index_factory(dimension, kind.replace("4096", "64"), faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    started = time.perf_counter()
    index.add(vectors)
    return (time.perf_counter() - started) / count


def table(estimates: list[Estimate], as_json: bool = False) -> str:
    """Return the estimates to read, or as JSON (bytes and seconds)."""
    if as_json:
        return json.dumps([asdict(entry) for entry in estimates], indent=2)
    lines = [f"{'index':<28}{'build: memory':>15}{'time':>12}{'disk':>12}{'serve: memory':>16}{'pages':>12}"]
    for entry in estimates:
        seconds = "?" if entry.build_seconds is None else f"{entry.build_seconds / 60:.1f} min"
        gigabytes = [value / 1e9 for value in (entry.build_memory, entry.disk, entry.serve_memory, entry.serve_pages)]
        building, disk, serving, pages = gigabytes
        lines.append(f"{entry.index:<28}{building:>12.2f} GB{seconds:>12}{disk:>9.2f} GB{serving:>13.2f} GB{pages:>9.2f} GB")
    lines.append(
        "Time of dense indexes: pass --encoder to measure it. Pages are those of the files: all processes share them, and the more of "
        "them\nmemory holds the faster is the service."
    )
    for entry in estimates:
        if entry.query_ms is not None:
            lines.append(
                f"{entry.index} answers a query of {WORDS} words with {K} passages in {entry.query_ms:.2g} ms, all pages in memory: "
                f"{entry.queries_per_second:,.0f} a second on one\nthread, {entry.queries_per_second_all_cores:,.0f} on "
                f"{cpu_count()} cores that do nothing else. HTTP is not counted."
            )
    return "\n".join(lines)
