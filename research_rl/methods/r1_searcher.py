"""R1-Searcher: incentivising the search capability in two stages (Song et al., 2025, arXiv:2503.05592).

Protocol, after a prompt that opens `<think>`: ``… <|begin_of_query|> keywords <|end_of_query|>`` → ``<|begin_of_documents|>`` passages
``<|end_of_documents|>`` → ``… </think> <answer> answer </answer>``. The markers are plain text, not special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from research_rl.blocks import without
from research_rl.methods.base import Method, known
from research_rl.methods.templates import Prompt, load_template, text_or_system
from research_rl.metrics import cover_em_tokens, f1, normalize_answer_spaced
from research_rl.types import Action, Answer, Invalid, Message, Passage, Reward, Search, Trajectory

Template = Literal["base", "sys"]
BEGIN_QUERY, END_QUERY = "<|begin_of_query|>", "<|end_of_query|>"
BEGIN_DOCUMENTS, END_DOCUMENTS = "<|begin_of_documents|>", "<|end_of_documents|>"
_SEVEN = (
    f"{BEGIN_DOCUMENTS}\n", f"{END_DOCUMENTS}\n\n", BEGIN_QUERY, END_QUERY, BEGIN_DOCUMENTS, END_DOCUMENTS, f"{BEGIN_DOCUMENTS}\n(1)",
)  # fmt: skip  # names only


def answer_text(text: str) -> str:
    """Return the text between the last `<answer>` and the `</answer>` after it; without tags, the whole text."""
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def has_answer(text: str) -> bool:
    """Return whether both answer tags occur."""
    return "<answer>" in text and "</answer>" in text


def marker_counts(text: str) -> set[int]:
    """Return how often each of the seven markers occurs, as a set: a single number if every query has its documents in the right form."""
    return {text.count(marker) for marker in _SEVEN}


# The format rules: each takes a response's text and returns whether the rule is kept.


def counts_equal(text: str) -> bool:
    """Every query has its documents, both in the exact form."""
    return len(marker_counts(text)) == 1


def think_closed_once(text: str) -> bool:
    """No `<think>` (the prompt opened it), one `</think>`."""
    return text.count("<think>") == 0 and text.count("</think>") == 1


def one_answer(text: str) -> bool:
    """One `<answer>` and one `</answer>`."""
    return text.count("<answer>") == text.count("</answer>") == 1


def no_marker_in_answer(text: str) -> bool:
    """The answer holds no query and no documents."""
    return not any(marker in answer_text(text) for marker in ("begin_of_query", "begin_of_documents"))


def no_chinese(text: str) -> bool:
    """No Chinese character outside documents."""
    return not re.search("[\u4e00-\u9fff]", without(text, BEGIN_DOCUMENTS, END_DOCUMENTS))


def short_answer(text: str) -> bool:
    """The answer has at most ten words."""
    return len(answer_text(text).split()) <= 10


def no_assistant(text: str) -> bool:
    """No "Assistant" or "assistant" anywhere: the policy must not write the user's next turn. A passage with the word breaks it, too."""
    return "Assistant" not in text and "assistant" not in text


RULES: dict[str, Callable[[str], bool]] = {
    rule.__name__: rule
    for rule in (counts_equal, think_closed_once, one_answer, no_marker_in_answer, no_chinese, short_answer, no_assistant)
}
_FIVE = tuple(RULES)[:5]
_LLAMA = tuple(rule for rule in _FIVE if rule != "no_marker_in_answer")  # as its reward server has them


@dataclass(frozen=True)
class Preset:
    """One reward: the paper's stages, or what a released reward server computes.

    `stage`: 1 rewards form and searching, 2 the answer. `whole`: apply the rules to the response with its passages, as the
    servers do; else to what the policy wrote, with each observation reduced to its markers.
    """

    stage: int
    whole: bool
    rules: tuple[str, ...] = _FIVE
    answer: Literal["none", "f1", "cover_em"] = "none"
    penalty: float = 0.0  # for breaking any rule


PRESETS: Mapping[str, Preset] = {
    "stage1_paper": Preset(1, whole=False),
    "stage1_llama": Preset(1, whole=True, rules=("think_closed_once", "one_answer"), answer="cover_em"),
    "stage2_paper": Preset(2, whole=False, answer="f1", penalty=2.0),
    "stage2_llama": Preset(2, whole=True, rules=_LLAMA, answer="f1", penalty=1.0),
    "qwen_zero": Preset(2, whole=True, rules=tuple(RULES), answer="f1", penalty=2.0),
}


class R1Searcher(Method):
    """Keywords between query markers; staged rewards for form, searching and answer (paper, section 3)."""

    name: ClassVar[str] = "r1_searcher"
    tags: tuple[str, ...] = (
        *(BEGIN_QUERY, END_QUERY, BEGIN_DOCUMENTS, END_DOCUMENTS),
        *("<think>", "</think>", "<answer>", "</answer>"),
    )
    observed = re.compile(
        r"(?:\n\n)?" + re.escape(BEGIN_DOCUMENTS) + ".*?" + re.escape(END_DOCUMENTS) + r"(?:\n\n)?", re.DOTALL
    )

    def __init__(
        self, template: Template = "base", prompt: Prompt = None, prompt_file: str | None = None, preset: str = "stage2_paper",
        rules: Sequence[str] | None = None, stop_at_answer: bool = False,
    ) -> None:  # fmt: skip  # many parameters
        """`rules`: the format rules to judge by instead of the preset's; `stop_at_answer`: end at `</answer>`, as the evaluation does.

        Raises:
            ConfigError: an unknown template, preset or rule, or an unusable prompt (see `load_template`).
        """
        known("R1Searcher", "template", template, get_args(Template))
        known("R1Searcher", "preset", preset, PRESETS)
        for rule in rules or ():
            known("R1Searcher", "rule", rule, RULES)
        self.template, self.preset = template, PRESETS[preset]
        self.rules = tuple(self.preset.rules if rules is None else rules)
        self.stop = (END_QUERY, "</answer>") if stop_at_answer else (END_QUERY,)
        self._prompt = load_template(f"r1_searcher_{template}", prompt, prompt_file, "question" if template == "base" else None)
        # a prompt of the user's may have opened the tag already
        self.prefill = "" if self._prompt.template.endswith("<think>") else " <think>" if template == "base" else "<think>"

    def prompt(self, question: str) -> str | list[Message]:
        return text_or_system(self.template, self._prompt, question)

    def parse(self, text: str) -> Action:
        if END_QUERY in text:
            asked = text[: text.index(END_QUERY)]
            if BEGIN_QUERY not in asked:
                return Invalid(f"{END_QUERY} without {BEGIN_QUERY}")
            query = " ".join(asked.split(BEGIN_QUERY)[-1].replace('"', "").split())
            return Search(query) if query else Invalid("empty query")
        return Answer(answer_text(text)) if has_answer(text) else Invalid("neither a query nor an answer")

    def render(self, passages: list[list[Passage]]) -> str:
        found = [re.sub(r"^\d+\s+", "", passage.contents) for result in passages for passage in result]
        listed = "".join(f"({number}){contents}\n" for number, contents in enumerate(found, 1)) or "None"
        return f"\n\n{BEGIN_DOCUMENTS}\n{listed}{END_DOCUMENTS}\n\n"

    def write_search(self, thought: str, query: str) -> str:
        return f"{thought}{BEGIN_QUERY} {query}{END_QUERY}"

    def write_answer(self, thought: str, answer: str) -> str:
        return f"{thought}</think><answer> {answer}</answer>"

    def judged(self, trajectory: Trajectory) -> str:
        """Return the text that the rules look at (see `Preset.whole`)."""
        if self.preset.whole:
            return trajectory.text
        bare = self.render([[Passage("", "")]])
        return "".join(turn.text + (bare if turn.observation else "") for turn in trajectory.turns)

    def well_formed(self, trajectory: Trajectory) -> bool:
        return all(RULES[rule](self.judged(trajectory)) for rule in self.rules)

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Return the reward of the preset; components: 1.0 per rule kept, and the parts of the score.

        Stage 1 (paper, equation 1): 0.5 [searched] + 0.5 [form right]; `stage1_llama` adds +1 or −1 for the answer (token cover).
        Stage 2 (equation 2): F1 of the answer, minus 2 (`stage2_llama`: 1) if any rule is broken. A judge's verdict replaces token
        cover and F1.
        """
        text = self.judged(trajectory)
        kept = {rule: float(RULES[rule](text)) for rule in self.rules}
        form = float(all(kept.values()))
        right = 0.0
        if has_answer(text) and self.preset.answer != "none":
            metric = f1 if self.preset.answer == "f1" else cover_em_tokens
            right = metric(answer_text(text), golden_answers, normalize_answer_spaced) if judged is None else judged
        if self.preset.stage == 2:
            parts = {"answer": right, "format": 0.0 if form else -self.preset.penalty}
        else:
            counts = marker_counts(text)
            searched = len(counts) == 1 and min(counts) >= 1 if self.preset.whole else bool(trajectory.searches)
            parts = {"retrieval": 0.5 * searched, "format": 0.5 * form}
            if self.preset.answer == "cover_em":
                parts["answer"] = 1.0 if right else -1.0
        return Reward(sum(parts.values()), {**parts, **{f"rule/{name}": value for name, value in kept.items()}})
