"""`data_preprocess corpus` on a synthetic dump in KILT's form: MB/s, memory, ratio to one core with no more than json and str.split.

    python benchmarks/corpus.py --gigabytes 1 [--out result.json]

The baseline reads the same file line by line, parses each line with json, joins the paragraphs, splits them at white space and throws the
result away: it writes nothing. Memory is the sum over the parent and its workers (proportional set size), sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm


def write_dump(path: Path, size: int, seed: int = 1) -> None:
    """Write pages of a few to a few thousand words, with headings, lists and non-ASCII letters, until the file has `size` bytes."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzéø", k=rng.randint(2, 11))) for _ in range(50_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law
    pool = rng.choices(words, weights, k=1_000_000)
    with path.open("w", encoding="utf-8") as file, tqdm(total=size, unit="B", unit_scale=True, desc="dump") as progress:
        page = 0
        while (written := file.tell()) < size:
            progress.update(written - progress.n)
            for _ in range(200):
                page += 1
                text = [f"Page {page}\n"]
                for section in range(min(30, 1 + int(rng.paretovariate(1.0)))):
                    start = rng.randrange(len(pool) - 300)
                    text += [f"Section::::Section {section}.\n", " ".join(pool[start : start + rng.randint(20, 300)]) + "\n"]
                    text += [f"BULLET::::- {' '.join(rng.choices(pool, k=5))}\n"] * rng.randint(0, 2)
                row = {
                    "_id": str(page),
                    "wikipedia_id": str(page),
                    "wikipedia_title": f"Page {page}",
                    "text": text,
                    "anchors": [],
                    "categories": "",
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


BASELINE = """
import json, sys
passages = 0
with open(sys.argv[1], encoding="utf-8") as file:
    for line in file:
        row = json.loads(line)
        words = " ".join(row["text"]).split()
        passages += -(-len(words) // 100)
print(passages)
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and the most memory of it and its children, in bytes."""
    started = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{command} failed with {process.returncode}")
    return time.monotonic() - started, peak


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dump, out = Path(folder) / "dump.json", Path(folder) / "passages.jsonl"
        write_dump(dump, int(options.gigabytes * 1e9))
        megabytes = dump.stat().st_size / 1e6
        baseline, _ = measured([sys.executable, "-c", BASELINE, str(dump)])
        arguments = ["corpus", "--format", "kilt", "--input", str(dump), "--out", str(out), "--workers", str(options.workers)]
        ours, peak = measured([sys.executable, "-m", "data_preprocess", *arguments])
        manifest = json.loads(Path(f"{out}.manifest.json").read_text(encoding="utf-8"))
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "megabytes": round(megabytes, 1),
        "documents": manifest["documents"],
        "passages": manifest["passages"],
        "baseline_mb_per_s": round(megabytes / baseline, 1),
        "ours_mb_per_s": round(megabytes / ours, 1),
        "ratio": round(baseline / ours, 2),
        "peak_memory_mb": round(peak / 1e6),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
