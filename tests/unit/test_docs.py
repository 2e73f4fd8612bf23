"""The documentation against the repository: links, anchors, commands, and the pages that are made of the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docs.tools import commands, configuration, drawings
from experiment.declaration import read_declaration

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""(?:\]\(|(?:src|srcset|href)=")([^)\s"]+)""")
ABBREVIATED = re.compile(r"[…\[\]|]")  # a line that shows what may stand there, not what is typed
AFTER = re.compile(r"^(?:&&|\|\|?|;|>)$")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def without_code(text: str) -> str:
    return re.sub(r"(`+).+?\1", "", FENCE.sub("", text))


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pages
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    broken = []
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.is_dir():
            target /= "README.md"
        if not target.is_file() or (target.suffix == ".md" and anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def shown(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of a page's shell blocks: the line, and its words after any variables."""
    for _, _, language, body in FENCE.findall(text):
        if language not in ("bash", "sh", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if AFTER.match(word):
                    if words:
                        yield line.strip(), words
                    words = []
                elif words or not re.match(r"(?:export|[A-Z_]+=.*)$", word):
                    words.append(word)


def known(words: list[str]) -> tuple[str, list[str]] | None:
    """Return which of our commands is called, by its first name, and with what; None for others'."""
    for length in (3, 2, 1):
        name = " ".join(words[:length])
        if name in commands.ALSO or name in commands.COMMANDS:
            return commands.ALSO.get(name, name), words[length:]
    return None


parser = cache(commands.parser_of)


def mistake(command: str, arguments: list[str], line: str) -> str | None:
    """Return what is wrong with a call of one of our commands."""
    top = parser(command)
    children = commands.subparsers(top)
    if children and arguments and arguments[0] not in ("--help", "COMMAND"):
        if arguments[0] not in children:
            return f"{line}: no subcommand {arguments[0]}"
        its = children[arguments[0]]
    else:
        its = top
    options = [word.strip("[]").partition("=")[0] for word in arguments if re.match(r"\[?-", word)]
    unknown = {option for option in options if option not in its._option_string_actions and not re.match(r"-\d", option)}
    if unknown:
        return f"{line}: no option {unknown}"
    if ABBREVIATED.search(line) or "--help" in arguments or not arguments or {"COMMAND", "--config"} & set(arguments):
        return None
    try:
        (top.parse_args if children else top.parse_intermixed_args)(arguments)
    except SystemExit:
        return f"{line}: cannot be parsed"
    return None


def targets() -> tuple[set[str], set[str]]:
    """Return the targets and the variables of the Makefile and what it includes."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "recipes/data.mk"))
    names = {name for line in re.findall(r"^([a-z0-9_ -]+):(?!=)", text, re.MULTILINE) for name in line.split()}
    return names, set(re.findall(r"^([A-Z_]+) \??=", text, re.MULTILINE)) | {"RECIPE"}


@pages
def test_every_command_that_is_shown_exists_with_its_options(page, capsys):
    names, variables = targets()
    mistakes = []
    for line, words in shown(page.read_text(encoding="utf-8")):
        if words[0] == "make":
            for word in words[1:]:
                variable, given, _ = word.strip("[]").partition("=")
                if "…" not in variable and variable not in (variables if given else names):
                    mistakes.append(f"{line}: make knows no {variable}")
        elif words[0] == "python" and words[1].endswith(".py"):
            if not (ROOT / words[1]).is_file():
                mistakes.append(f"{line}: no file {words[1]}")
        elif words[0] == "research-rl" and not known(words):
            mistakes.append(f"{line}: no command {words[1]}")
        elif (call := known(words)) and (told := mistake(*call, line)):
            mistakes.append(told)
    assert not mistakes, (mistakes, capsys.readouterr().err)


@pages
def test_every_command_in_the_text_names_a_subcommand_and_options_that_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    mistakes = []
    for span in re.findall(r"`([^`\n]+)`", text):
        try:
            words = shlex.split(span)
        except ValueError:
            continue
        if (call := known(words)) and call[1] and (told := mistake(*call, f"{span} …")):
            mistakes.append(told)
    assert not mistakes


@pytest.mark.parametrize("made", [commands, configuration], ids=["commands", "configuration"])
def test_a_page_that_is_made_of_the_code_is_current(made):
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "make docs-reference"


def test_the_drawings_are_those_of_the_recorded_trajectory_and_of_the_measured_table():
    made = drawings.drawings()
    assert {name: (drawings.ASSETS / name).read_text(encoding="utf-8") for name in made} == made, "make docs-reference"
    assert all(figure in made["plot-light.svg"] for figure in (">0.390<", ">0.790<", ">0.125<"))


def test_every_drawing_asks_nothing_of_another_host_and_can_be_read_aloud():
    for file in (ROOT / "docs" / "assets").glob("*.svg"):
        text = file.read_text(encoding="utf-8")
        assert "<title>" in text, file
        assert not re.search(r"(href|src|url\()\W*https?:", text), file


def test_the_readme_takes_two_minutes():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 90
    assert max(len(line) for line in lines if not line.startswith(("|", "  <"))) <= 160


def test_every_page_of_docs_stands_in_the_navigation():
    listed = set(re.findall(r"[\w/+]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    missing = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - listed
    assert not missing


def test_the_experiment_of_the_tutorial_is_one(tmp_path):
    text = (ROOT / "docs" / "tutorials" / "own_corpus.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(next(body for _, _, language, body in FENCE.findall(text) if language == "yaml"))
    declaration = read_declaration(tmp_path / "mine.yaml")
    named = (declaration.train, declaration.cold_start and declaration.cold_start.recipe, declaration.few_shot_prompt)
    assert all(name and (ROOT / name).is_file() for name in named)


def block(page: str) -> dict[str, Any]:
    """Run the first Python block of a page and return its names."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(next(body for _, _, language, body in FENCE.findall(text) if language == "python"), names)
    return names


def block_after(page: str, mark: str) -> dict[str, Any]:
    """Run the Python block that a mark on a page announces, and return its names."""
    names: dict[str, Any] = {}
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(mark)[2]
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    return names


def test_the_retriever_of_the_how_to_finds_passages():
    retriever = block("howto/retriever.md")["Substring"]([("1", "a tower"), ("2", "a bridge")])
    assert [[hit.id for hit in hits] for hits in retriever.search(["bridge", "a"], 1)] == [["2"], ["1"]]
