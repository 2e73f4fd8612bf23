"""The methods that starting models learn, each with the prompt of its CPU recipe, and with typical errors of format."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from research_rl.methods.base import Method
from research_rl.methods.r1_searcher import R1Searcher
from research_rl.methods.r1_searcher_pp import R1SearcherPP
from research_rl.methods.research import ReSearch
from research_rl.methods.search_r1 import SearchR1

RECIPES = Path(__file__).parents[2] / "recipes"
I_KNOW = " I know it."
_MARKED = re.compile(r"<answer>|\\boxed\{")  # where the answer's markup begins


@dataclass(frozen=True)
class Dialect:
    """A method, and what its final turn looks like with broken tags, or from memory."""

    method: Method
    broken: tuple[str, str]  # a thought with one tag too few or too many: two variants
    recalled: str = "{}"  # the thought of an answer from memory, without a search

    def ask(self, noted: str, wish: str, query: str) -> str:
        """Return a turn that ends in a search."""
        return self.method.write_search(f"{noted}{wish}", query)

    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        """Return the turn with the final answer; `boxed`: False if the policy forgets the answer's markup."""
        text = self.method.write_answer(self.recalled.format(noted) if noted == I_KNOW else noted, answer)
        # remove the innermost markup only: ReSearch's box is inside <answer> tags, which remain
        return (
            text
            if boxed
            else re.sub(rf"\\boxed{{ {re.escape(answer)}}}|<answer> {re.escape(answer)}</answer>", f" {answer}", text)
        )

    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        """Return the same with broken tags."""
        text = self.method.write_answer("", answer)
        return rng.choice(self.broken).format(noted) + text[_MARKED.search(text).start() :]  # type: ignore[union-attr]  # every answer has markup


_HALF_THOUGHTS = ("<think>{}", "{}</think>")
DIALECTS: dict[str, Dialect] = {
    "research": Dialect(ReSearch(prompt_file=str(RECIPES / "quickstart" / "prompt.txt")), _HALF_THOUGHTS),
    "r1_searcher": Dialect(
        R1Searcher(prompt_file=str(RECIPES / "r1_searcher" / "prompt_cpu.txt")), ("<think>{}</think>", "{}")
    ),
    "r1_searcher_pp": Dialect(
        R1SearcherPP(template="base", prompt_file=str(RECIPES / "r1_searcher_pp" / "prompt_cpu.txt")),
        ("<internal>{}", "{}</internal>"),
        "<internal>{}</internal>",
    ),
    "search_r1": Dialect(SearchR1(prompt_file=str(RECIPES / "search_r1" / "prompt_cpu.txt")), _HALF_THOUGHTS),
}
