"""A forked Python is like a new one in what it is given, what it has imported of ours and verl's, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from research_rl.cpu import CPU_ENVIRONMENT, TRAINER_IMPORTS, VLLM_IMPORTS
from research_rl.forks import forked as shared
from tests import forked

pytestmark = pytest.mark.slow


def test_it_has_its_own_arguments_environment_directory_and_output(tmp_path):
    (tmp_path / "here.py").write_text("import sys; print(__name__, sys.argv[1:], file=sys.stderr)")
    code = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), os.environ['COLOUR'], __name__]))"
    done = forked.run("-c", code, "a", cwd=tmp_path, COLOUR="red")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [["-c", "a"], str(tmp_path), "red", "__main__"]
    assert forked.run("-m", "here", "b", cwd=tmp_path).stderr == "__main__ ['b']\n"


def test_nothing_of_verl_and_of_ours_only_what_forks_is_imported_before_and_no_thread_runs():
    code = """
import os, sys
ours = {"verl", "hydra", "flashrag", "research_rl", "rag_serving", "evaluation"}
print(sorted(name for name in sys.modules if name.split(".")[0] in ours))
print("torch" in sys.modules, len(os.listdir(f"/proc/{os.getpid()}/task")))
"""
    assert forked.run("-c", code).stdout == "['research_rl', 'research_rl.forks', 'research_rl.forks.client']\nTrue 1\n"


@pytest.mark.parametrize(
    ("code", "returned", "told"),
    [
        ("raise SystemExit('a mistake')", 1, "a mistake"),
        ("raise SystemExit(3)", 3, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(lambda: print('last', file=sys.stderr))", 0, "last"),
        ("import sys, threading; threading.Timer(0.1, lambda: print('after', file=sys.stderr)).start()", 0, "after"),
    ],
)
def test_it_ends_as_a_new_one_would(code, returned, told):
    done = forked.run("-c", code)
    assert done.returncode == returned
    assert told in done.stderr


def test_one_that_takes_too_long_is_killed_and_what_it_wrote_is_told(tmp_path):
    code = "import pathlib, time; print('so far', flush=True); pathlib.Path('there').touch(); time.sleep(300)"
    process = forked.Process("-c", code, cwd=tmp_path)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    with pytest.raises(AssertionError, match="so far"):
        process.wait(0)


def test_what_the_processes_of_a_training_share_has_nothing_of_ray_and_starts_no_thread():
    """Ray's core reads when it is imported for which job it works; a worker that is forked later would crash."""
    code = """
import os, sys
print("ray" in sys.modules, "verl" in sys.modules, len(os.listdir(f"/proc/{os.getpid()}/task")))
print([name for name in sys.argv[1:] if name not in sys.modules])
"""
    modules = (*TRAINER_IMPORTS, *VLLM_IMPORTS)
    done = subprocess.run(
        [sys.executable, *shared(*modules), "-c", code, *modules],
        capture_output=True, text=True, check=False, cwd=forked.ROOT, env={**os.environ, **CPU_ENVIRONMENT},
    )  # fmt: skip
    assert done.stdout.endswith("False False 1\n[]\n"), done.stdout + done.stderr  # vLLM logs before it
