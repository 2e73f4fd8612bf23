"""The scripts by which shells complete the commands."""

from __future__ import annotations

import shutil
import subprocess

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


def test_every_command_is_completed(complete):
    assert complete("research-rl", "") == list(completion.COMMANDS)
