"""`python -m …`, `python -c …` and scripts for tests, without the seconds of their imports: forked from a process that has made them.

What is imported beforehand is what stands beneath verl and FlashRAG (`LIBRARIES`). They themselves, Hydra (our plugin waits for its
import) and all of ours but `research_rl.forks` are imported by the forked process, which has its own arguments, environment and working
directory. The libraries were imported with the tests' environment. For what only a new interpreter shows (settings of the heap, what is
imported first) use `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from research_rl.forks import ADDRESS, PYTHON

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch", "transformers", "pandas", "pyarrow.parquet", "datasets", "tensordict", "omegaconf", "ray", "sklearn.metrics",
    "accelerate", "jsonschema", "httpx",
)  # fmt: skip


class Process:
    """A Python that runs. `arguments` are those of its command line (`-m MODULE …`, `-c CODE …` or `FILE …`); `environment` is added to the
    tests'.
    """

    def __init__(self, *arguments: str, cwd: Path | str = ROOT, **environment: str) -> None:
        """Start it."""
        self.arguments = arguments
        self._written = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (`wait` closes them)
        python, address = _server()
        environment = {**os.environ, ADDRESS: address, **environment}
        stdout, stderr = self._written
        self._process = subprocess.Popen(
            [python, *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        self.pid = self._process.pid

    def running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it; `wait` for it afterwards."""
        self._process.kill()

    def wait(self, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Return its exit code (negative: the signal that ended it) and what it wrote.

        Raises:
            AssertionError: it was still running after `timeout_s`, and was killed; what it wrote stands in the message.

        """
        try:
            self._process.wait(timeout_s)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            self.kill()
            self._process.wait()
        written = []
        for file in self._written:
            file.seek(0)
            written.append(file.read())
            file.close()
        assert not late, f"{' '.join(self.arguments)[:200]} still ran after {timeout_s} s:\n{written[0]}\n{written[1]}"
        return subprocess.CompletedProcess(self.arguments, self._process.returncode, *written)


def run(*arguments: str, cwd: Path | str = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end; see `Process`."""
    return Process(*arguments, cwd=cwd, **environment).wait()


def verl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run verl's own command to its end."""
    return run("-m", "verl.trainer.main_ppo", *arguments, **environment)


@functools.cache
def _server() -> tuple[str, str]:
    """Return what stands for `python`, and the address of the process that forks, which ends with the tests."""
    code = f"import os, sys; print(os.environ['{PYTHON}'], os.environ['{ADDRESS}'], sep='\\n', flush=True); sys.stdin.read()"
    command = [sys.executable, "-P", "-m", "research_rl.forks.server", ",".join(LIBRARIES), "--", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server.stdout.readline().strip(), server.stdout.readline().strip()
