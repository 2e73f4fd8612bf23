"""Reinforcement learning of reasoning with search: methods, rollout, rewards. ``SearchAgent`` asks a served model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research_rl.inference.agent import SearchAgent

__all__ = ["SearchAgent"]


def __getattr__(name: str) -> object:  # verl imports this package in every process, so the agent is loaded on demand only
    if name == "SearchAgent":
        from research_rl.inference.agent import SearchAgent

        return SearchAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
