r"""Search-o1-style prompting (Li et al., 2025, arXiv:2501.05366): an untrained reasoning model that searches while it thinks.

Protocol: ``<|begin_search_query|> query <|end_search_query|>``, ``<|begin_search_result|> … <|end_search_result|>``, answer in
``\boxed{}``. The original lets the model first condense the passages in a call of its own (reason-in-documents); here they are shown as
they are. A baseline for evaluation; its reward is F1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from research_rl.blocks import contents
from research_rl.methods.base import Method, known
from research_rl.methods.research import last_boxed
from research_rl.methods.templates import Prompt, load_template
from research_rl.metrics import f1
from research_rl.types import Action, Answer, Invalid, Message, Passage, Reward, Search, Trajectory

Template = Literal["chat", "base"]
BEGIN_QUERY, END_QUERY = "<|begin_search_query|>", "<|end_search_query|>"
BEGIN_RESULT, END_RESULT = "<|begin_search_result|>", "<|end_search_result|>"


class SearchO1(Method):
    """Prompting alone: the model's own reasoning, a query between its markers, the answer in a box."""

    name: ClassVar[str] = "search_o1"
    stop = (END_QUERY,)
    tags: tuple[str, ...] = (BEGIN_QUERY, END_QUERY, BEGIN_RESULT, END_RESULT, "\\boxed{")
    observed = re.compile(rf"(?<!\s)\s*{re.escape(BEGIN_RESULT)}.*?{re.escape(END_RESULT)}\s*", re.DOTALL)

    def __init__(self, template: Template = "chat", prompt: Prompt = None, prompt_file: str | None = None) -> None:
        """`template`: the instruction as a user turn (chat and reasoning models) or as plain text (base models).

        Raises:
            ConfigError: an unknown template, or an unusable prompt (see `load_template`).
        """
        known("SearchO1", "template", template, get_args(Template))
        self.template = template
        self._prompt = load_template("search_o1_chat", prompt, prompt_file)

    def prompt(self, question: str) -> str | list[Message]:
        text = self._prompt.substitute(question=question)
        return f"{text}\n" if self.template == "base" else [{"role": "user", "content": text}]

    def parse(self, text: str) -> Action:
        if queries := contents(text, BEGIN_QUERY, END_QUERY):
            return Search(query) if (query := queries[-1].strip()) else Invalid("empty query")
        answer = last_boxed(text)
        return Answer(answer) if answer else Invalid("neither a query nor a boxed answer")

    def render(self, passages: list[list[Passage]]) -> str:
        shown = "\n\n".join(passage.contents for result in passages for passage in result)
        return f"\n\n{BEGIN_RESULT}\n{shown}\n{END_RESULT}\n\n"

    def write_search(self, thought: str, query: str) -> str:
        return f"{thought}{BEGIN_QUERY} {query}{END_QUERY}"

    def write_answer(self, thought: str, answer: str) -> str:
        return f"{thought}\\boxed{{ {answer}}}"

    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether it ended in an answer."""
        return self.answer(trajectory) is not None

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        answer = self.answer(trajectory)
        overlap = f1(answer or "", golden_answers)
        return Reward(overlap if answer is None or judged is None else judged, {"f1": overlap})
