"""A program that is forked instead of started: what it is given, how it is ended, and what it does without a process to fork it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from research_rl.forks import ADDRESS, PYTHON, client, forked, server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what it asks the system for is Linux's")


START = f"import os, signal, subprocess, sys, time; python = os.environ['{PYTHON}']"
MODULES = ("json", "multiprocessing.spawn")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for a socket, wherever pytest has its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def run(code: str, modules: tuple[str, ...] = MODULES, **options) -> subprocess.CompletedProcess[str]:
    """Run a program that can have others forked, by what it calls `python`."""
    command = [sys.executable, *forked(*modules), "-c", f"{START}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def test_it_has_its_own_arguments_directory_environment_input_and_open_files(tmp_path):
    code = """
with open("there", "w") as file:
    os.dup2(file.fileno(), 77)
    show = "import json, os, sys; os.write(77, sys.stdin.read().encode()); print(json.dumps([sys.argv, os.getcwd(), os.environ['C']]))"
    subprocess.run([python, "-c", show, "a b", "é"], cwd="in", env={**os.environ, "C": "\\udc80"}, input="hello", text=True, pass_fds=[77])
"""
    (tmp_path / "in").mkdir()
    done = run(code, cwd=tmp_path)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [["-c", "a b", "é"], str(tmp_path / "in"), "\udc80"]
    assert (tmp_path / "there").read_text() == "hello"


def test_what_is_imported_is_there_and_what_cannot_be_is_left_out(tmp_path):
    show = "import sys; print('json' in sys.modules, 'fails' in sys.modules)"
    (tmp_path / "fails.py").write_text("raise RuntimeError('no')")
    done = run(f"subprocess.run([python, '-c', {show!r}])", modules=("fails", "nowhere", "json"), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True False\n", "")


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)]
)
def test_a_signal_to_what_stands_for_it_ends_it(number, ended):
    wait = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"""
process = subprocess.Popen([python, "-c", {wait!r}], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
pid = int(process.stdout.readline())
process.send_signal({int(number)})
print(process.wait(), pid != process.pid)
for _ in range(1000):
    if not os.path.exists(f"/proc/{{pid}}"):
        break
    time.sleep(0.01)
else:
    print("still there")
"""
    assert run(code).stdout == f"{ended} True\n"


def test_the_processes_of_multiprocessing_are_forked_too(tmp_path):
    script = tmp_path / "double.py"
    script.write_text("""
import multiprocessing, os
def double(number):
    return 2 * number, "json" in __import__("sys").modules, os.environb[b"PYTHON_EXEC"] == multiprocessing.spawn.get_executable()
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(double, range(3)))
""")
    done = subprocess.run(
        [sys.executable, *forked("json"), str(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"{[(2 * number, True, True) for number in range(3)]}\n", "")


def test_two_programs_draw_different_numbers():
    pytest.importorskip("numpy")
    show = "import random, numpy; print(random.random(), numpy.random.random())"
    done = run(f"for _ in range(2): subprocess.run([python, '-c', {show!r}])", modules=("random", "numpy"))
    drawn = done.stdout.split()
    assert len(drawn) == len(set(drawn)) == 4


@pytest.mark.parametrize(
    ("code", "ended"), [("", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)]
)
def test_it_ends_as_its_first_program_does_and_leaves_nothing(code, ended, short):
    done = run(f"print(python, flush=True); {code}", env={**os.environ, "TMPDIR": str(short)})
    assert done.returncode == ended
    assert done.stdout.startswith(str(short))
    assert list(short.iterdir()) == []


def test_ctrl_c_passes_by_what_has_a_process_group_of_its_own_and_what_is_left_behind_ends():
    wait = "import time; print('ready', flush=True); time.sleep(60)"
    code = f"""
process = subprocess.Popen([python, "-c", {wait!r}], stdout=subprocess.PIPE, text=True, process_group=0)
process.stdout.readline()
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.killpg(0, signal.SIGINT)
time.sleep(0.5)
print(process.poll(), flush=True)
os._exit(0)
"""
    begun = time.monotonic()
    done = run(code, start_new_session=True)
    assert (done.stdout, done.returncode) == ("None\n", 0)
    assert time.monotonic() - begun < 20  # `run` reads until all who hold its output have ended


def test_where_no_program_may_be_executed_each_process_imports_for_itself(monkeypatch, capsys, short):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setenv(PYTHON, "/an/earlier/one")
    server.Server()
    assert PYTHON not in os.environ
    assert "noexec" in capsys.readouterr().err


def test_a_long_path_for_temporary_files_is_avoided(tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    assert run("print(python)", env={**os.environ, "TMPDIR": str(folder)}).stdout.startswith("/tmp/research-rl-")


def test_sigterm_reaches_the_first_program_and_no_other():
    code = f"""{START}
other = subprocess.Popen([python, "-c", "import time; time.sleep(60)"])
def end(*_):
    print(other.poll())
    other.kill()
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""
    command = [sys.executable, *forked("json"), "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.stdout.read() == "None\n"
        assert process.wait(30) == 5


@pytest.mark.parametrize("address", [None, "nowhere"])
@pytest.mark.parametrize("arguments", [["-c", "print(1)"], ["-W", "ignore", "-c", "print(1)"]])
def test_without_a_process_that_forks_it_is_python(address, arguments):
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS} | (
        {ADDRESS: address} if address else {}
    )
    command = [sys.executable, "-I", "-S", client.__file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_only_the_user_can_ask():
    mode = run("print(oct(os.stat(os.path.dirname(python)).st_mode & 0o777))").stdout
    assert mode == "0o700\n"


def test_it_can_have_a_title():
    pytest.importorskip("setproctitle")
    show = "import setproctitle; setproctitle.setproctitle('a title'); print(open('/proc/self/cmdline').read().strip('\\0'))"
    done = run(f"subprocess.run([python, '-c', {show!r}], env={{**os.environ, 'NEW': '1'}})")
    assert (done.stdout, done.stderr) == ("a title\n", "")
