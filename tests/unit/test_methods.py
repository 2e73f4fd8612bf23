"""What every method has and takes: its attributes, its prompt as text or file, and tags that a passage cannot speak."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.methods import check_method, load_method, method_names, with_prompt_texts
from research_rl.methods.base import Method, recorded
from research_rl.methods.r1_searcher_pp import R1SearcherPP
from research_rl.neutralize import breakable, neutralize
from research_rl.types import Invalid, Passage, Reward, Turn
from tests.time_limit import seconds

BASE = {"search_o1": "chat", "r1_searcher_pp": "base"}  # the template that has a $question, where it is not the default


class Whole(Method):
    name = "whole"
    stop = ("\n",)
    tags = ("Search:", "Found:")
    observed = re.compile("Found:")

    def prompt(self, question):
        return question

    def parse(self, text):
        return Invalid("")

    def render(self, passages):
        return ""

    def reward(self, trajectory, golden_answers):
        return Reward(0.0)

    def well_formed(self, trajectory):
        return True


class NoName(Whole):
    name = None  # type: ignore[assignment]


class NoStop(Whole):
    stop = None  # type: ignore[assignment]


class OneStop(Whole):
    stop = "\n"  # type: ignore[assignment]


class NoTags(Whole):
    tags = None  # type: ignore[assignment]


class NoObserved(Whole):
    observed = "Found:"  # type: ignore[assignment]


class EndlessTag(Whole):
    tags = ("Search:", "# ")


class OneCharacter(Whole):
    tags = ("#",)


class Half(Method):
    name = "half"

    def prompt(self, question):
        return question


HERE = __name__


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("NoName", "`name`, a text; got None"),
        ("NoStop", "`stop`, a tuple of texts; got None"),
        ("OneStop", "`stop`, a tuple of texts; got"),
        ("NoTags", "`tags`, a tuple of texts; got None"),
        ("NoObserved", "`observed`, a compiled regular expression; got 'Found:'"),
        ("EndlessTag", r"\['# '\]. A tag needs two characters or more"),
        ("OneCharacter", r"\['#'\]. A tag needs two characters or more"),
        ("Half", "does not define: parse, render, reward, well_formed"),
    ],
)
def test_a_method_that_is_not_whole_is_refused_when_it_is_loaded(kind, says):
    with pytest.raises(ConfigError, match=says):
        load_method(f"{HERE}.{kind}")


def test_an_attribute_that_is_not_there_at_all_is_refused(monkeypatch):
    for attribute in ("name", "stop", "tags", "observed"):
        with monkeypatch.context() as patch:
            patch.delattr(Whole, attribute)
            with pytest.raises(ConfigError, match=f"needs the attribute `{attribute}`"):
                load_method(f"{HERE}.Whole")
    assert isinstance(load_method(f"{HERE}.Whole"), Whole)


@pytest.mark.parametrize("name", method_names())
def test_our_methods_are_whole(name):
    method = load_method(name)
    assert check_method(method) is method


words = st.lists(st.text("a# \n", max_size=4), min_size=1, max_size=6)


@given(words, words)
@example(["# "], ["# "])
def test_neutralizing_ends_for_every_text_and_every_list_of_forbidden_strings(forbidden, between):
    text = "".join(part for pair in zip_longest(forbidden, between, fillvalue="") for part in pair)
    with seconds(5):
        clean = neutralize(text, forbidden)
    assert not any(word in clean for word in forbidden if breakable(word))
    assert clean.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("search_r1", "<search>"),
        ("search_r1", "<answer>"),
        ("search_o1", "<|begin_search_query|>"),
        ("r1_searcher", "<|begin_of_query|>"),
        ("r1_searcher", "<|begin_of_documents|>"),
        ("r1_searcher_pp", "<external>"),
        ("research", "<search>"),
        ("research", "<answer>"),
        ("tool_calls", "<tool_call>"),
    ],
)
def test_a_policy_that_repeats_an_opening_marker_is_read_in_no_time(name, marker):
    """Reading the rest of the text again at each marker, whose number is 50,000 here, would take minutes."""
    method = load_method(name)
    text = marker * 50_000
    with seconds(10):
        trajectory = recorded("Who?", [Turn(text, method.parse(text))])
        method.reward(trajectory, ["Orla"])
        method.well_formed(trajectory)
        method.answer(trajectory)
        if isinstance(method, R1SearcherPP):
            method.extract(trajectory)


@given(
    st.sampled_from(method_names()),
    st.lists(st.sampled_from(["<", "</", ">", "|>", "1 ", "\n", "tag", "Doc"]), max_size=12),
    st.data(),
)
def test_a_cut_passage_cannot_speak_with_a_tag_either(name, texts, data):
    method = load_method(name)
    text = "".join(data.draw(st.sampled_from(method.tags)) if part == "tag" else part for part in texts)
    bare = method.render([[Passage("", ""), Passage("", "")]])
    for width in range(len(text) + 1):
        observation = method.render([[Passage("", neutralize(text[:width], method.tags))] * 2])
        assert [observation.count(tag) for tag in method.tags] == [bare.count(tag) for tag in method.tags]


@pytest.fixture
def prompt_file(tmp_path, monkeypatch):
    """A prompt named from the directory where the run starts; returns its name and text."""
    text = "Price: $$5, $${braces}, ${question}s of $question\n\n"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "p.txt").write_text(text)
    monkeypatch.chdir(tmp_path / "here")
    return "p.txt", text


@pytest.mark.parametrize("name", [name for name in method_names() if name != "tool_calls"])  # whose prompt asks no question
def test_a_prompts_text_is_an_option_like_its_file(name, prompt_file, tmp_path, monkeypatch):
    file, text = prompt_file
    options = {"template": BASE.get(name, "base")}
    expected = load_method(name, prompt_file=file, **options).prompt("Who?")
    told = expected if isinstance(expected, str) else expected[-1]["content"]
    assert told.startswith("Price: $5, ${braces}, Who?s of Who?")
    assert load_method(name, prompt=text, **options).prompt("Who?") == expected
    carried = with_prompt_texts(name, {"prompt_file": file, **options})
    monkeypatch.chdir(tmp_path)
    assert set(carried) == {"prompt", "template"}
    assert load_method(name, **carried).prompt("Who?") == expected
    with pytest.raises(ConfigError, match="the text of a prompt or its file, not both"):
        load_method(name, prompt=text, prompt_file=file, **options)
    with pytest.raises(ConfigError, match=r"must contain \$question"):
        load_method(name, prompt="no question", **options)


def test_the_rewriters_prompt_travels_too(prompt_file):
    carried = with_prompt_texts("r1_searcher_pp", {"rewrite_prompt_file": prompt_file[0], "group": False})
    assert set(carried) == {"rewrite_prompt", "group"}
    assert load_method("r1_searcher_pp", **carried).name == "r1_searcher_pp"


def test_a_method_without_the_option_keeps_its_file(monkeypatch):
    def __init__(self, prompt_file):
        pass

    monkeypatch.setattr(Whole, "__init__", __init__)
    assert with_prompt_texts(f"{HERE}.Whole", {"prompt_file": str(Path("p.txt"))}) == {"prompt_file": "p.txt"}
