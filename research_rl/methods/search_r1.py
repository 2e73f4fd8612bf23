"""Search-R1: the baseline (Jin et al., 2025, arXiv:2503.09516).

Protocol: ``<think>…</think> <search>query</search> <information>Doc 1(Title: …) text</information> … <answer>…</answer>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from research_rl.blocks import blocks, contents
from research_rl.methods.base import Method, known
from research_rl.methods.templates import Prompt, load_template
from research_rl.metrics import exact_match
from research_rl.types import Action, Answer, Invalid, Message, Passage, Reward, Search, Trajectory

Preset = Literal["em", "em_format"]
Template = Literal["base", "chat"]
_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
# state → {tag: next state}. A response is <think>, then <search> with <information> or the <answer>, with nothing between the blocks.
_NEXT = {
    "start": {"<think>": "thinking"}, "thinking": {"</think>": "thought"},
    "thought": {"<search>": "asking", "<answer>": "answering"},
    "asking": {"</search>": "asked"}, "asked": {"<information>": "reading"}, "reading": {"</information>": "start"},
    "answering": {"</answer>": "end"}, "end": {},
}  # fmt: skip  # a table


def valid_sequence(text: str) -> bool:
    """Return whether the blocks follow one another as the protocol says, with white space only between them."""
    state = "start"
    for part in _TAG.split(text):
        if _TAG.fullmatch(part):
            if part not in _NEXT[state]:
                return False
            state = _NEXT[state][part]
        elif part.strip() and state in ("start", "thought", "asked", "end"):
            return False
    return state == "end"


class SearchR1(Method):
    """Search between `<search>` tags, exact match as reward; an invalid action is answered by a hint and costs a turn.

    After `max_searches` searches and hints there is one more turn, in which no search is executed. The stop strings are ours: the original
    has none, and cuts a turn off behind its first `</search>`, or else behind its first `</answer>`.
    """

    name: ClassVar[str] = "search_r1"
    stop = ("</search>", "</answer>")
    tags: tuple[str, ...] = (
        *("<think>", "</think>", "<search>", "</search>", "<information>", "</information>", "<answer>", "</answer>"),
    )
    observed = re.compile(  # passages; and hints, ours or the original's
        r"(?<!\s)\s*<information>.*?</information>\s*|\n(?:That was no valid action|My previous action is invalid).*?Let me try again\.\n",
        re.DOTALL,
    )

    def __init__(
        self, template: Template = "base", prompt: Prompt = None, prompt_file: str | None = None, preset: Preset = "em",
        hint: bool = True, question_mark: bool = False,
    ) -> None:  # fmt: skip  # many parameters
        """`template`: the instruction as plain text (base models) or as a user turn (chat models); `hint`: whether to give hints;
        `question_mark`: whether to add one to a question that ends in none, as the original does.

        Raises:
            ConfigError: an unknown template or preset, or an unusable prompt (see `load_template`).
        """
        known("SearchR1", "template", template, get_args(Template))
        known("SearchR1", "preset", preset, get_args(Preset))
        self.template, self.preset, self._hint, self._question_mark = template, preset, hint, question_mark
        self._prompt = load_template("search_r1_base", prompt, prompt_file)

    def prompt(self, question: str) -> str | list[Message]:
        if self._question_mark:
            question = f"{question.strip().removesuffix('?')}?"
        text = self._prompt.substitute(question=question)
        return text if self.template == "base" else [{"role": "user", "content": text}]

    def parse(self, text: str) -> Action:
        first = [
            (place, kind) for kind in ("search", "answer") if (place := next(blocks(text, f"<{kind}>", f"</{kind}>"), None))
        ]
        if not first:
            return Invalid("neither a complete <search> nor a complete <answer>")
        (start, stop), kind = min(first)
        content = text[start:stop].removeprefix(f"<{kind}>").removesuffix(f"</{kind}>").strip()
        if kind == "answer":
            return Answer(content)
        return Search(content) if content else Invalid("empty query")

    def render(self, passages: list[list[Passage]]) -> str:
        documents = []
        for number, passage in enumerate((passage for result in passages for passage in result), 1):
            title, _, text = passage.contents.partition("\n")
            documents.append(f"Doc {number}(Title: {title}) {text}\n")
        return f"\n\n<information>{''.join(documents).strip()}</information>\n\n"

    def write_search(self, thought: str, query: str) -> str:
        return f"<think>{thought}</think><search> {query}</search>"

    def write_answer(self, thought: str, answer: str) -> str:
        return f"<think>{thought}</think><answer> {answer}</answer>"

    def answer(self, trajectory: Trajectory) -> str | None:
        """Return the last complete answer that the policy wrote within one turn, wherever it stands in it."""
        answers = [answer for turn in trajectory.turns for answer in contents(turn.text, "<answer>", "</answer>")]
        return answers[-1].strip() if answers else None

    def hint(self, action: Invalid) -> str:
        """Return a reminder of the two actions; it is masked like a passage."""
        if not self._hint:
            return ""
        return (
            "\nThat was no valid action. To search, the query belongs between <search> and </search>; "
            "to answer, the answer belongs between <answer> and </answer>. Let me try again.\n"
        )

    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether the whole response is a valid sequence. Passages have no influence; a hint makes it invalid."""
        bare = self.render([])
        parts = [
            turn.text + (bare if isinstance(turn.action, Search) and turn.observation else "") for turn in trajectory.turns
        ]
        hinted = any(isinstance(turn.action, Invalid) and turn.observation for turn in trajectory.turns)
        return not hinted and valid_sequence("".join(parts))

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Return the outcome reward; a judge's verdict replaces the exact match.

        Preset `em`: 1 if the last answer matches exactly, else 0 (equation 4). Preset `em_format`: 1 right and valid, 0.8 right but
        invalid, 0.2 wrong but valid, 0.1 wrong and invalid, 0 without any answer (the released trainer's format variant, which
        never pays 0, because it takes the examples in its prompt for answers).
        """
        answer, valid = self.answer(trajectory), self.well_formed(trajectory)
        exact = exact_match(answer, golden_answers) if answer is not None else 0.0
        score = right = exact if answer is None or judged is None else judged
        if self.preset == "em_format":
            score = (1.0 if right else 0.2) if valid else 0.8 if right else 0.1 if answer is not None else 0.0
        return Reward(score, {"em": exact, "format": float(valid)})
