"""How one demonstration reads in each method's protocol: what the policy writes when it asks, and when it answers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path

from research_rl.methods.base import Method
from research_rl.methods.r1_searcher import BEGIN_QUERY, END_QUERY, R1Searcher
from research_rl.methods.r1_searcher_pp import R1SearcherPP
from research_rl.methods.research import ReSearch
from research_rl.methods.search_r1 import SearchR1

RECIPES = Path(__file__).parents[2] / "recipes"


class Dialect(ABC):
    """One method, with the prompt of its recipe for CPUs."""

    method: Method

    @abstractmethod
    def ask(self, noted: str, wish: str, query: str) -> str:
        """Return a turn that ends in a search."""

    @abstractmethod
    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        """Return the turn with the final answer; `boxed` is False if the policy forgets the form of the answer."""

    @abstractmethod
    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        """Return the same with broken tags."""


class _ReSearch(Dialect):
    method = ReSearch(prompt_file=str(RECIPES / "quickstart" / "prompt.txt"))

    def ask(self, noted: str, wish: str, query: str) -> str:
        return f"<think>{noted}{wish}</think><search> {query}</search>"

    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        return f"<think>{noted}</think><answer>{_box(answer) if boxed else f' {answer}'}</answer>"

    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        return f"{_half('think', noted, rng)}<answer>{_box(answer)}</answer>"


class _R1Searcher(Dialect):
    method = R1Searcher(prompt_file=str(RECIPES / "r1_searcher" / "prompt_cpu.txt"))

    def ask(self, noted: str, wish: str, query: str) -> str:
        return f"{noted}{wish}{BEGIN_QUERY} {query}{END_QUERY}"

    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        return f"{noted}</think>" + (f"<answer> {answer}</answer>" if boxed else f" {answer}")

    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        return f"{rng.choice((f'<think>{noted}</think>', noted))}<answer> {answer}</answer>"


class _R1SearcherPP(Dialect):
    method = R1SearcherPP(template="base", prompt_file=str(RECIPES / "r1_searcher_pp" / "prompt_cpu.txt"))

    def ask(self, noted: str, wish: str, query: str) -> str:
        return f"{noted}{wish}<external> {query}</external>"

    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        return f"{self._recalled(noted)}{_box(answer) if boxed else f' {answer}'}"

    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        return f"{_half('internal', noted, rng)}{_box(answer)}"

    @staticmethod
    def _recalled(noted: str) -> str:
        return f"<internal>{noted}</internal>" if noted == I_KNOW else noted


class _SearchR1(_ReSearch):  # which asks in the same words
    method = SearchR1(prompt_file=str(RECIPES / "search_r1" / "prompt_cpu.txt"))

    def tell(self, noted: str, answer: str, boxed: bool) -> str:
        return f"<think>{noted}</think>" + (f"<answer> {answer}</answer>" if boxed else f" {answer}")

    def tell_broken(self, noted: str, answer: str, rng: random.Random) -> str:
        return f"{_half('think', noted, rng)}<answer> {answer}</answer>"


I_KNOW = " I know it."
DIALECTS: dict[str, Dialect] = {
    "research": _ReSearch(), "r1_searcher": _R1Searcher(), "r1_searcher_pp": _R1SearcherPP(), "search_r1": _SearchR1(),
}  # fmt: skip


def _box(answer: str) -> str:
    return f"\\boxed{{ {answer}}}"


def _half(tag: str, text: str, rng: random.Random) -> str:
    """Return a text with one of its two tags."""
    return rng.choice((f"<{tag}>{text}", f"{text}</{tag}>"))
