"""A reward of one's own: a method's class with another `reward`.

    python examples/own_reward.py

scores two responses with it. To train with it:

    python -m quickstart --recipe recipes/research/cpu.yaml --run-dir runs/thrifty research_rl.method=examples.own_reward.Thrifty
"""

from research_rl.methods.research import ReSearch
from research_rl.types import Reward


class Thrifty(ReSearch):
    """ReSearch, less 0.05 for every search after the first."""

    name = "research"  # the protocol is still ReSearch's

    def reward(self, trajectory, golden_answers, judged=None):
        given = super().reward(trajectory, golden_answers, judged)
        fine = 0.05 * min(0, 1 - len(trajectory.searches))
        return Reward(given.score + fine, {**given.components, "extra_searches": fine})


SEARCH = "<think> I look it up. </think>\n<search> Silent Orchard </search> <result>\nIts author is Mira Tolen.\n</result>\n"
ANSWER = "<think> I know. </think>\n<answer> The final answer is \\[ \\boxed{Mira Tolen} \\] </answer>"

if __name__ == "__main__":
    for searches in (1, 3):
        trajectory = Thrifty().read(SEARCH * searches + ANSWER)
        reward = Thrifty().reward(trajectory, ["Mira Tolen"])
        print(f"{len(trajectory.searches)} searches: {reward.score:.2f} {reward.components}")
