"""The scripts by which shells complete the commands."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

from research_rl import completion

pytest.importorskip("shtab")

DRIVE = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"$(complete -p "$1" | grep -o '_shtab[a-z_]*')"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Return the scripts' files, by shell and command."""
    folder = tmp_path_factory.mktemp("completion")
    files = {}
    for shell in completion.SHELLS:
        for command in (completion.WHOLE, completion.SERVICE):
            files[shell, command] = folder / f"{command}.{shell}"
            files[shell, command].write_text(completion.script(shell, command))
    return files


@pytest.fixture
def complete(scripts, tmp_path):
    """Return what bash offers for the last of some words, in a directory with one recipe."""
    (tmp_path / "my_recipe.yaml").touch()

    def offered(*words: str) -> list[str]:
        command = ["bash", "-c", DRIVE, "bash", str(scripts["bash", words[0]]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()

    return offered


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_scripts_are_valid(shell, scripts):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    for command in (completion.WHOLE, completion.SERVICE):
        done = subprocess.run([shell, "-n", str(scripts[shell, command])], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["research-rl", "ev"], ["evaluate"]),
        (["research-rl", "evaluate", "resc"], ["rescore"]),
        (["research-rl", "evaluate", "run", "--ques"], ["--questions"]),
        (["research-rl", "evaluate", "score", "--normalizer", ""], ["r1_searcher", "squad"]),
        (["research-rl", "train", "my"], ["my_recipe.yaml"]),
        (["research-rl", "doctor", "--recipe", "my"], ["my_recipe.yaml"]),
        (["research-rl", "serve", "ver"], ["verify"]),
        (["rag-serving", "ver"], ["verify"]),
        (["rag-serving", "config", "--milvus-t"], ["--milvus-token"]),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_options_choices_and_files(words, expected, complete):
    assert complete(*words) == expected


@pytest.fixture(scope="module")
def zsh(scripts, tmp_path_factory):
    """Type a line and a tab into an interactive zsh, in a directory with one recipe; return the line that is there then."""
    if not shutil.which("zsh"):
        pytest.skip("no zsh here")
    folder = tmp_path_factory.mktemp("zsh")
    (folder / "my_recipe.yaml").touch()
    for command in (completion.WHOLE, completion.SERVICE):
        shutil.copy(scripts["zsh", command], folder / f"_{command}")
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder)})

    def answer(keys: str, mark: str) -> str:
        os.write(terminal, keys.encode())
        found, until = "", time.monotonic() + 30
        while mark not in found and time.monotonic() < until:
            if select.select([terminal], [], [], 0.1)[0]:
                found += os.read(terminal, 65_536).decode(errors="replace")
        assert mark in found, found
        return found

    # a key that prints the line between <| and |>, and one that throws it away; the mark is written so that the echo does not have it
    setup = 'autoload -Uz compinit; compinit -u -D; show() { print -r -- "<|$BUFFER|>" }; zle -N show; bindkey "^X" show; '
    answer(f"fpath=({folder} $fpath); {setup} bindkey '^U' kill-whole-line; print rea''dy\n", "ready")

    def typed(line: str) -> str:
        return answer(f"\x15{line}\t\x18", "|>").rpartition("<|")[2].partition("|>")[0]

    yield typed
    os.close(terminal)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("research-rl evaluate resc", "research-rl evaluate rescore "),
        ("research-rl evaluate run --ques", "research-rl evaluate run --questions "),
        ("research-rl train my", "research-rl train my_recipe.yaml "),
        ("research-rl doctor --recipe my", "research-rl doctor --recipe my_recipe.yaml "),
        ("rag-serving ver", "rag-serving verify "),
        ("rag-serving config --milvus-t", "rag-serving config --milvus-token "),
    ],
)
def test_zsh_completes_commands_options_and_files(line, completed, zsh):
    assert zsh(line) == completed


def test_every_command_is_completed(complete):
    assert complete("research-rl", "") == list(completion.COMMANDS)
