r"""R1-Searcher++: internal knowledge before external (Song et al., 2025, arXiv:2505.17005).

The authors have released no code: this is a re-implementation of the paper, and what the paper leaves open is an option here.
Protocol: ``… <internal>a fact recalled</internal> … <external>query</external> <document>passages</document> … \boxed{answer}``.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from research_rl.blocks import without
from research_rl.methods.base import Method, known
from research_rl.methods.research import last_boxed
from research_rl.methods.templates import Prompt, load_template, text_or_system
from research_rl.metrics import cover_em_tokens, normalize_answer_spaced
from research_rl.types import Action, Answer, Invalid, Message, Passage, Reward, Search, Trajectory

Template = Literal["base", "sys"]
GroupForm = Literal["twice_variance", "variance", "std"]
Std = Literal["population", "sample"]
Correct = Literal["answer", "answer_and_format"]
_FORMS: dict[str, Callable[[float], float]] = {
    "twice_variance": lambda sigma: 2 * sigma**2,
    "variance": lambda sigma: sigma**2,
    "std": lambda sigma: sigma,
}
_TAG = re.compile(r"</?(?:internal|external|document)>")


def tags_in_order(text: str) -> bool:
    """Every tag is closed before the next opens, and every query is followed by its documents."""
    tags = _TAG.findall(text)
    pairs = list(zip(tags[::2], tags[1::2], strict=False))
    names = [opened[1:-1] for opened, closed in pairs if closed == f"</{opened[1:-1]}>"]
    if len(tags) % 2 or len(names) != len(pairs):
        return False
    # documents follow a query directly, and occur nowhere else
    return all((before == "external") == (name == "document") for before, name in pairwise(["", *names, ""]))


def one_box(text: str) -> bool:
    """One box, whose braces balance."""
    return text.count("\\boxed{") == 1 and last_boxed(text) is not None


def no_marker_in_answer(text: str) -> bool:
    """The answer holds no tag."""
    return not _TAG.search(last_boxed(text) or "")


RULES: dict[str, Callable[[str], bool]] = {rule.__name__: rule for rule in (tags_in_order, one_box, no_marker_in_answer)}


def group_rewards(
    correct: Sequence[bool],
    searches: Sequence[int],
    eta: float = 2.0,
    form: GroupForm = "twice_variance",
    std: Std = "population",
) -> list[float]:
    """Return the group reward of each rollout of one question (paper, section 3.3).

    min(2σ², η) for every correct rollout with the fewest searches, 0 for the others; σ is the standard deviation of the number of
    searches among the correct ones. With fewer than two correct rollouts, or equal counts, σ is 0 and so is the reward.
    """
    counts = [count for right, count in zip(correct, searches, strict=True) if right]
    if len(counts) < 2:
        return [0.0] * len(correct)
    sigma = statistics.pstdev(counts) if std == "population" else statistics.stdev(counts)
    bonus = min(_FORMS[form](sigma), eta)
    return [bonus if right and count == min(counts) else 0.0 for right, count in zip(correct, searches, strict=True)]


class R1SearcherPP(Method):
    """Recall in `<internal>`, search in `<external>`; rewards for form, answer and, within a group, for few searches."""

    name: ClassVar[str] = "r1_searcher_pp"
    stop = ("</external>",)
    tags: tuple[str, ...] = (
        *("<internal>", "</internal>", "<external>", "</external>", "<document>", "</document>"),
        "\\boxed{",
    )
    observed = re.compile(r"\n<document>\n.*?</document>\n", re.DOTALL)

    def __init__(
        self, template: Template = "sys", prompt: Prompt = None, prompt_file: str | None = None, rules: Sequence[str] = tuple(RULES),
        max_answer_words: int = 10, format_penalty: float = 2.0, group: bool = True, eta: float = 2.0,
        form: GroupForm = "twice_variance", std: Std = "population", correct: Correct = "answer", rewrite_prompt: Prompt = None,
        rewrite_prompt_file: str | None = None, rewrite_with_answer: bool = False,
    ) -> None:  # fmt: skip  # many parameters
        """Every choice that the paper leaves open, or that only one source confirms, is an argument. Where the paper states a value, it is
        the default.

        `group`: add the group reward; `correct`: whether a malformed rollout with a right answer counts as correct for it;
        `rewrite_with_answer`: show the rewriter the golden answer (then few rewritings are rejected as wrong).

        Raises:
            ConfigError: an unknown template, rule, form, std or correct, or an unusable prompt (see `load_template`).
        """
        for option, value, valid in (
            ("template", template, get_args(Template)),
            ("form", form, get_args(GroupForm)),
            ("std", std, get_args(Std)),
            ("correct", correct, get_args(Correct)),
            *(("rule", rule, tuple(RULES)) for rule in rules),
        ):
            known("R1SearcherPP", option, value, valid)
        self.template, self.rules, self._words, self._penalty = template, tuple(rules), max_answer_words, format_penalty
        self._group, self._eta, self._correct = group, eta, correct
        self._form: GroupForm = form
        self._std: Std = std
        self._prompt = load_template(
            f"r1_searcher_pp_{template}", prompt, prompt_file, "question" if template == "base" else None
        )
        self._rewrite = load_template("r1_searcher_pp_rewrite", rewrite_prompt, rewrite_prompt_file)
        self._tell = rewrite_with_answer

    def prompt(self, question: str) -> str | list[Message]:
        return text_or_system(self.template, self._prompt, question)

    def parse(self, text: str) -> Action:
        if "</external>" in text:
            asked = text[: text.index("</external>")]
            if "<external>" not in asked:
                return Invalid("</external> without <external>")
            query = asked[asked.rindex("<external>") + len("<external>") :].strip()
            return Search(query) if query else Invalid("empty query")
        answer = last_boxed(text)
        return Invalid("neither a query nor a \\boxed{} answer") if answer is None else Answer(answer)

    def render(self, passages: list[list[Passage]]) -> str:
        listed = "".join(
            f"({n}){passage.contents}\n" for n, passage in enumerate((p for result in passages for p in result), 1)
        )
        return f"\n<document>\n{listed}</document>\n"

    def write_search(self, thought: str, query: str) -> str:
        return f"{thought}<external> {query}</external>"

    def write_answer(self, thought: str, answer: str) -> str:
        return f"{thought}\\boxed{{ {answer}}}"

    def judged(self, trajectory: Trajectory) -> str:
        """Return what the policy wrote, with each observation reduced to its tags."""
        bare = self.render([])
        return "".join(turn.text + (bare if turn.observation else "") for turn in trajectory.turns)

    def well_formed(self, trajectory: Trajectory) -> bool:
        return all(RULES[rule](self.judged(trajectory)) for rule in self.rules)

    def right(self, answer: str | None, golden_answers: Sequence[str]) -> bool:
        """Return whether an answer has at most `max_answer_words` words and covers the tokens of a golden answer."""
        return self._is_short(answer) and bool(cover_em_tokens(answer or "", golden_answers, normalize_answer_spaced))

    def _is_short(self, answer: str | None) -> bool:
        # an empty answer would cover a golden answer that is normalised to nothing ("A", "The")
        return bool(answer and normalize_answer_spaced(answer)) and len((answer or "").split()) <= self._words

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Return 1 for a right answer, minus `format_penalty` if a rule is broken; `regroup` adds the group reward.

        A judge's verdict replaces the token cover, but not the limit of words.
        """
        text = self.judged(trajectory)
        kept = {f"rule/{rule}": float(RULES[rule](text)) for rule in self.rules}
        said = self.answer(trajectory)
        answer = float(self.right(said, golden_answers) if judged is None else self._is_short(said) and judged > 0)
        form = 0.0 if all(kept.values()) else -self._penalty
        return Reward(answer + form, {"answer": answer, "format": form, "group": 0.0, **kept})

    def rewrite_prompt(self, trajectory: Trajectory, golden_answers: Sequence[str]) -> list[Message]:
        """Return the messages that ask a model for a path without search."""
        passages = "\n\n".join(passage.contents for turn in trajectory.turns for passage in turn.passages)
        text = self._rewrite.substitute(question=trajectory.question, passages=passages)
        text += f"\n\nThe answer: {golden_answers[0]}" if self._tell else ""
        return [{"role": "user", "content": text}]

    def extract(self, trajectory: Trajectory) -> str:
        """Return what the policy wrote, without its queries, as one recollection, followed by the answer."""
        words = "".join(without(turn.text, "<external>", "</external>") for turn in trajectory.turns)
        start = words.rfind("\\boxed{")
        return f"<internal>{_TAG.sub('', words[:start])}</internal>{words[start:]}" if start >= 0 else words

    def accepts(self, text: str, golden_answers: Sequence[str]) -> bool:
        """Return whether a rewritten path recalls, does not search, keeps every rule and ends in a right answer."""
        trajectory = self.read(text)
        searches = "<external>" in text or "<document>" in text
        recalls = "<internal>" in text
        return recalls and not searches and self.well_formed(trajectory) and self.right(self.answer(trajectory), golden_answers)

    def regroup(self, trajectories: Sequence[Trajectory], rewards: Sequence[Reward]) -> list[Reward]:
        if not self._group:
            return list(rewards)
        correct = [
            reward.components["answer"] > 0 and (self._correct == "answer" or reward.components["format"] == 0)
            for reward in rewards
        ]
        searches = [len(trajectory.searches) for trajectory in trajectories]
        extra = group_rewards(correct, searches, self._eta, self._form, self._std)
        return [
            replace(reward, score=reward.score + more, components={**reward.components, "group": more})
            for reward, more in zip(rewards, extra, strict=True)
        ]
