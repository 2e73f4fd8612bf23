r"""ReSearch: learning to reason with search by reinforcement learning (Chen et al., 2025, arXiv:2503.19470).

Protocol: ``<think>…</think> <search>query</search> <result>passages</result> … <answer>… \boxed{final} </answer>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from research_rl.methods.base import Method, known
from research_rl.methods.templates import Prompt, load_template, text_or_system
from research_rl.metrics import f1
from research_rl.types import Action, Answer, Invalid, Message, Passage, Reward, Search, Trajectory

Preset = Literal["code", "paper"]
Template = Literal["base", "sys"]
_TAG = re.compile(r"</?(?:think|answer)>")


class ReSearch(Method):
    """Search between `<search>` tags, answer in a box; F1 reward on top of a format gate (paper, section 2.3)."""

    name: ClassVar[str] = "research"
    stop = ("</search>",)
    tags: tuple[str, ...] = (
        *("<think>", "</think>", "<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>"),
        "\\boxed{",
    )
    observed = re.compile(r" <result>\n.*?\n</result>", re.DOTALL)

    def __init__(
        self, template: Template = "base", prompt: Prompt = None, prompt_file: str | None = None, preset: Preset = "code"
    ) -> None:
        """`template`: plain text for base models or a system message for chat models; `prompt` or `prompt_file` replace its wording.

        Raises:
            ConfigError: an unknown template or preset, or an unusable prompt (see `load_template`).
        """
        known("ReSearch", "template", template, get_args(Template))
        known("ReSearch", "preset", preset, get_args(Preset))
        self.template, self.preset = template, preset
        self._prompt = load_template(f"research_{template}", prompt, prompt_file, "question" if template == "base" else None)

    def prompt(self, question: str) -> str | list[Message]:
        return text_or_system(self.template, self._prompt, question)

    def parse(self, text: str) -> Action:
        text = text[: text.index("</search>") + len("</search>")] if "</search>" in text else text
        if text.endswith("</search>"):
            if "<search>" not in text:
                return Invalid("</search> without <search>")
            query = text[text.rindex("<search>") + len("<search>") : -len("</search>")].strip()
            return Search(query) if query else Invalid("empty query")
        answer = last_boxed(answer_block(text))
        return Invalid("no \\boxed{} in an <answer> block") if answer is None else Answer(answer)

    def render(self, passages: list[list[Passage]]) -> str:
        documents = "\n\n".join(passage.contents for result in passages for passage in result)
        return f" <result>\n{documents}\n</result>"

    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether every search has its result, there is one answer, with a box, and there are thoughts, all of them closed.

        Think tags are only counted: neither their places nor that of the answer matter. Observations count with their tags but without
        their passages, so a passage can neither break nor mend the format.
        """
        text = "".join(turn.text + (self.render([]) if turn.observation else "") for turn in trajectory.turns)
        tags = _TAG.findall(text)
        thoughts, answers = [tag for tag in tags if "think" in tag], [tag for tag in tags if "answer" in tag]
        return (
            thoughts.count("<think>") == thoughts.count("</think>") > 0
            and answers == ["<answer>", "</answer>"]
            and _searches_have_results(text)
            and "\\boxed{" in answer_block(text)
        )

    def write_search(self, thought: str, query: str) -> str:
        return f"<think>{thought}</think><search> {query}</search>"

    def write_answer(self, thought: str, answer: str) -> str:
        return f"<think>{thought}</think><answer>\\boxed{{ {answer}}}</answer>"

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Return the outcome reward; a judge's verdict replaces F1.

        Preset `code` (what the released trainer computes): 0 unless the format is right, the response ends in EOS and has a
        box; then F1 if it is positive, else 0.1. Preset `paper` (equation 2): F1 if positive, else 0.1 for a right format, else 0.
        """
        answer = self.answer(trajectory)
        overlap = f1(answer, golden_answers) if answer is not None else 0.0
        right = overlap if answer is None or judged is None else judged
        format_right = self.well_formed(trajectory)
        if self.preset == "code":
            complete = format_right and trajectory.ended_with_eos and answer is not None
            score = (right or 0.1) if complete else 0.0
        else:
            score = right or (0.1 if format_right else 0.0)
        return Reward(score, {"f1": overlap, "format": float(format_right)})


def _searches_have_results(text: str) -> bool:
    """Return whether each `<search>` is followed by `</search>`, `<result>` and `</result>`, in this order, as the released trainer
    checks it: the next `<search>` that counts is the one behind that `</result>`."""
    start = text.find("<search>")
    while start >= 0:
        places = [start, text.find("</search>", start), text.find("<result>", start)]
        places.append(text.find("</result>", max(places[-1], 0)))
        if min(places) < 0 or places != sorted(places):
            return False
        start = text.find("<search>", places[-1])
    return True


def answer_block(text: str) -> str:
    """Return the text inside the last complete `<answer>` block, or an empty string."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else ""


def last_boxed(text: str) -> str | None:
    r"""Return the stripped content of the last ``\boxed{…}`` whose braces balance, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position].strip()
    return None
