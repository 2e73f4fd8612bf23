"""A method of one's own: one search, one answer.

    python examples/own_method.py

scores two responses with it. To train with it, name the class in a recipe: `research_rl.method=examples.own_method.AskOnce`.
"""

import re

from research_rl.methods.base import Method
from research_rl.metrics import exact_match
from research_rl.types import Answer, Invalid, Reward, Search


class AskOnce(Method):
    """`Search: query` on the first line, `Answer: text` on the second; exact match, half of it without a search."""

    name = "ask_once"
    stop = ("\n",)
    tags = ("Search:", "Answer:", "Found:")
    observed = re.compile(r"Found:.*?\n\n", re.DOTALL)

    def prompt(self, question):
        return f"Question: {question}\n"

    def parse(self, text):
        kind, _, rest = text.strip().partition(": ")
        actions = {"Search": Search, "Answer": Answer}
        return actions[kind](rest.strip()) if kind in actions and rest.strip() else Invalid("neither Search: nor Answer:")

    def render(self, passages):
        return "Found: " + " ".join(passage.contents for result in passages for passage in result) + "\n\n"

    def well_formed(self, trajectory):
        return self.answer(trajectory) is not None

    def reward(self, trajectory, golden_answers, judged=None):
        exact = exact_match(self.answer(trajectory) or "", golden_answers)
        right = exact if judged is None else judged  # a judge's verdict, where the recipe has one
        return Reward(right if trajectory.searches else right / 2, {"em": exact})


if __name__ == "__main__":
    method = AskOnce()
    for response in (
        "Search: Silent Orchard\nFound: Its author is Mira Tolen.\n\nAnswer: Mira Tolen\n",
        "Answer: Mira Tolen\n",
    ):
        trajectory = method.read(response)
        print(f"{trajectory.searches} {method.answer(trajectory)!r}: {method.reward(trajectory, ['Mira Tolen']).score}")
