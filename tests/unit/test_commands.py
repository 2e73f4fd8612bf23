"""Every command: its help has an example that parses and says the defaults, and a mistake is told with its remedy and exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys

import pytest

from docs.tools import commands
from research_rl import cli
from research_rl.command_line import Parser, json_object
from research_rl.verl_plugin.doctor.report import coloured

DOORS = {"evaluate": "evaluation.__main__", "data": "data_preprocess.__main__", "train": "research_rl.training.train"}


def parsers() -> list[tuple[str, argparse.ArgumentParser, argparse.ArgumentParser]]:
    """Return every command that is typed, the parser that reads it, and the parser of its options."""
    found = []
    for command in commands.COMMANDS:
        top = commands.parser_of(command)
        found.append((command, top, top))
        found += [(f"{command} {name}", top, child) for name, child in commands.subparsers(top).items()]
    return found


ALL = parsers()
every = pytest.mark.parametrize(("command", "top", "parser"), ALL, ids=[command for command, _, _ in ALL])


@every
def test_the_help_ends_with_an_example_that_parses(command, top, parser):
    example = commands.example_of(parser)
    assert parser.prog == command
    assert example.startswith(f"{command} ")
    assert parser.format_help().rstrip().endswith(example)
    arguments = shlex.split(example.replace("\\\n", " "))[len(top.prog.split()) :]
    (top.parse_args if commands.subparsers(top) else top.parse_intermixed_args)(arguments)


@every
def test_every_option_is_explained_and_says_its_default(command, top, parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        assert action.help, action.dest
        has_default = action.default not in (None, False, "", [], {}, argparse.SUPPRESS) and not action.required
        if action.option_strings and has_default and action.nargs != 0:
            assert "default" in parser._get_formatter()._expand_help(action), action.dest


@every
def test_the_same_thing_has_the_same_option(command, top, parser):
    for names in (("-k", "--top-k"), ("--url", "--retrieval-url"), ("--rollouts", "--samples"), ("--processes", "--workers")):
        for action in parser._actions:
            if names[0] in action.option_strings:
                assert names[1] in action.option_strings


def test_an_option_of_several_commands_means_the_same_or_is_known_not_to():
    different = {"--cache", "--config", "--data", "--format", "--language", "--passages"}
    assert set(commands.shared()) == set(commands.SHARED) | different
    assert not set(commands.SHARED) & different


@pytest.mark.parametrize("name", DOORS)
def test_both_ways_to_a_command_say_the_same(name, capsys):
    said = []
    for main, arguments in ((cli.main, [name, "--help"]), (importlib.import_module(DOORS[name]).main, ["--help"])):
        with pytest.raises(SystemExit):
            main(arguments)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_misspelt_option_names_the_right_one_and_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "recall", "--questions", "q.jsonl", "--retreival-url", "http://x"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "no option is called --retreival-url. Did you mean '--retrieval-url'?" in told
    assert "python -m evaluation recall --help" in told


def test_a_missing_argument_and_an_unknown_command_end_with_2_and_say_where_help_is(capsys):
    for arguments in (["train"], ["evaluate", "rum"], ["evaluate"], ["view"], ["export", "x"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "3", "[]"])
def test_an_option_that_takes_json_says_so(text, capsys):
    parser = Parser(prog="x", example="x --options '{}'")
    parser.add_argument("--options", type=json_object)
    with pytest.raises(SystemExit):
        parser.parse_args(["--options", text])
    assert "expected a JSON object, for example" in capsys.readouterr().err
    assert parser.parse_args(["--options", '{"a": 1}']).options == {"a": 1}


def test_what_follows_two_dashes_and_overrides_are_no_options():
    parser = Parser(prog="x", example="x a=1")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--port", type=int)
    assert parser.parse_intermixed_args(["a=1", "--port", "3", "+b=2", "~c"]).overrides == ["a=1", "+b=2", "~c"]


def test_a_default_with_a_percent_sign_is_shown_as_it_is():
    parser = Parser(prog="x", example="x")
    parser.add_argument("--share", default="5%", help="how much")
    assert "how much (default 5%)" in parser.format_help()


def test_a_reader_that_has_seen_enough_is_no_mistake(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"answer": "Oslo", "golden_answers": ["Oslo"]}\n')
    command = f"({shlex.quote(sys.executable)} -m evaluation score {shlex.quote(str(rows))}; echo $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0"


def test_a_tokenizer_that_is_nowhere_is_told_in_a_sentence(tmp_path, capsys):
    arguments = ["--model", "m", "--tokenizer", str(tmp_path / "none"), "--method", "research"]
    (tmp_path / "q").write_text('{"id": "1", "question": "Where?", "golden_answers": ["Oslo"]}\n')
    arguments += ["--questions", str(tmp_path / "q"), "--out", str(tmp_path / "o")]
    assert importlib.import_module("evaluation.__main__").main(["run", *arguments]) == 1
    assert f"no tokenizer {tmp_path / 'none'}: there is no such directory" in capsys.readouterr().err


def test_a_failure_ends_with_1(tmp_path, capsys):
    assert cli.main(["evaluate", "score", str(tmp_path / "none.jsonl")]) == 1
    assert cli.main(["serve", "verify", str(tmp_path / "none")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_the_doctor_leaves_at_once_with_its_whole_report_and_its_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "research_rl.cli", "doctor", "--recipe", str(tmp_path / "none.yaml"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    [finding] = json.loads(done.stdout)["findings"]
    assert "none.yaml" in finding["what"]
    assert done.returncode == 1


@pytest.mark.parametrize(("value", "colour"), [("1", False), ("", True)])
def test_no_colour_where_the_user_wants_none(value, colour, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", value)
    assert coloured() is colour
