"""Seconds of `research-rl doctor`, each time a command of its own, over every broken set-up of its test: ``python -m benchmarks.doctor``.

Prints, for each, the seconds of the whole command and whether it told what is broken; then their median and the longest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.broken import BROKEN, QUICKSTART, ROOT, service_app, whole_run
from tests.servers import app_in_thread


def main() -> None:
    """Run it; all of this takes a few minutes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.chdir(ROOT)  # recipes name their prompts from here
    seconds = []
    with app_in_thread(service_app()) as url:
        os.environ["RETRIEVAL_URL"] = os.environ["CONTROL_RETRIEVAL_URL"] = url
        for broken, (breaks, level, name, told, remedy) in BROKEN.items():
            with tempfile.TemporaryDirectory() as directory:
                overrides = breaks(whole_run(Path(directory)))
                command = [
                    "-m",
                    "research_rl.cli",
                    "doctor",
                    "--recipe",
                    str(QUICKSTART),
                    "--run-dir",
                    directory,
                    "--json",
                    *overrides,
                ]
                started = time.perf_counter()
                done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
                seconds.append(time.perf_counter() - started)
            findings = [one for one in json.loads(done.stdout)["findings"] if (one["level"], one["name"]) == (level, name)]
            right = any(told in " ".join(one.values()) and remedy in " ".join(one.values()) for one in findings)
            print(f"{seconds[-1]:5.1f} s  {'told' if right else 'NOT TOLD'}  {broken}", flush=True)
    print(f"{len(seconds)} set-ups: median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s")


if __name__ == "__main__":
    main()
