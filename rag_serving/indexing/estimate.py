"""`rag-serving estimate`: memory, disk and time of an index of N passages, before anything is built.

BM25's costs are measured, not assumed: two small indexes of sampled passages (yours, or synthetic ones) are built in processes of their
own, and a straight line through the two gives cost = fixed + slope x passages. A FAISS index's bytes follow from its type.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from rag_serving import IndexingError
from rag_serving.indexing.formats import Passage, read_corpus
from rag_serving.indexing.synthetic import synthetic

SAMPLES = (15_000, 45_000)  # passages of the two trial builds
# bytes a vector of d numbers takes, beside the 8 of its id in an IVF list; HNSW32: 64 links of 4 bytes at the bottom, few above
_VECTOR_BYTES = {"Flat": lambda d: 4 * d, "SQ8": lambda d: d, "HNSW32": lambda d: 4 * d + 272, "IVF4096,Flat": lambda d: 4 * d + 8,
                 "IVF4096,SQ8": lambda d: d + 8, "IVF4096,PQ48": lambda d: 56}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds; None: not known without --encoder."""

    index: str
    build_memory: int
    serve_memory: int
    disk: int
    build_seconds: float | None


def estimate(
    passages: int | None, corpus: Path | None = None, words: int = 100, encoder: str | None = None, dimension: int = 768
) -> list[Estimate]:
    """Return one estimate per kind of index. Without `passages`, their number is told from the size of `corpus` and a sample of it.

    Raises:
        IndexingError: neither a number nor a corpus was given.
    """
    if passages is None and corpus is None:
        raise IndexingError("give --passages N, or --corpus FILE to count by")
    sample = list(islice(read_corpus(corpus) if corpus else synthetic(words), SAMPLES[1]))
    if not sample:
        raise IndexingError(f"{corpus} has no passages")
    corpus_bytes = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in sample) / len(sample)
    if passages is None:
        assert corpus is not None
        if corpus.suffix == ".gz" or corpus.is_dir() or corpus.suffix == ".parquet":
            passages = sum(1 for _ in read_corpus(corpus))
        else:
            passages = len(sample) if len(sample) < SAMPLES[1] else int(corpus.stat().st_size / corpus_bytes)
    corpus_disk = int(passages * (corpus_bytes + 8))
    return [_bm25(sample, passages), *_dense(sample, passages, corpus_disk, encoder, dimension)]


def _line(x: tuple[float, float], y: tuple[float, float], at: float) -> float:
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return max(y[1], y[0] + slope * (at - x[0])) if at >= x[1] else y[1] * at / x[1]


def _bm25(sample: list[Passage], passages: int) -> Estimate:
    sizes = (max(1, len(sample) // 3), max(2, len(sample)))
    trials = [_trial(sample[:size]) for size in sizes]
    memory, seconds, disk, loaded = zip(*trials, strict=True)
    return Estimate(
        "bm25", int(_line(sizes, memory, passages)), int(_line(sizes, loaded, passages)), int(_line(sizes, disk, passages)),
        _line(sizes, seconds, passages),
    )  # fmt: skip


def _trial(sample: list[Passage]) -> tuple[float, float, float, float]:
    """Build and load an index; return peak bytes, seconds, bytes on disk, bytes of the loaded process with all its pages."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "c.jsonl"), Path(folder, "index")
        source.write_text("".join(json.dumps(row) + "\n" for row in sample))
        build = _measured(["-m", "rag_serving.cli", "index", "--corpus", str(source), "--out", str(out)])
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        load = _measured(["-c", f"from rag_serving.retrievers import load_index; load_index({str(out)!r})"])
        return build[0], build[1], disk, load[0] + disk


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
        raise IndexingError(f"the trial build failed: {done.stderr.strip().splitlines()[-1]}")
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
    for kind, size in _VECTOR_BYTES.items():
        vectors = passages * size(dimension) + (4096 * dimension * 4 if kind.startswith("IVF") else 0)
        seconds = None if per_passage is None else passages * (per_passage + _adding(kind, dimension))
        # while indexing: the index, and the vectors it is trained on (as many for every size of corpus)
        trained = 0 if kind in ("Flat", "HNSW32") else min(passages, 64 * 4096) * dimension * 4
        disk = corpus_disk + vectors
        found.append(Estimate(f"dense {kind}", base + vectors + trained, base + vectors, disk, seconds))
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
    lines = [f"{'index':<20}{'build: memory':>15}{'time':>12}{'disk':>12}{'serve: memory':>16}"]
    for entry in estimates:
        seconds = "?" if entry.build_seconds is None else f"{entry.build_seconds / 60:.1f} min"
        memory, disk, serving = entry.build_memory / 1e9, entry.disk / 1e9, entry.serve_memory / 1e9
        lines.append(f"{entry.index:<20}{memory:>12.2f} GB{seconds:>12}{disk:>9.2f} GB{serving:>13.2f} GB")
    lines.append(
        "Time of dense indexes: pass --encoder to measure it. Serving memory counts the index's pages, which processes share."
    )
    return "\n".join(lines)
