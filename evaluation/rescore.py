"""Rewards of recorded responses: the score that a method gives them, and its components."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from evaluation.jsonl import field, golden_field, read_rows, trajectory_field
from research_rl.files import write_jsonl
from research_rl.methods.base import Method
from research_rl.scoring import broken_rules
from research_rl.types import Reward, Trajectory


def rescore_file(
    source: Path, out: Path, method: Method, response_field: str, gold_field: str, group_field: str | None = None
) -> dict[str, Any]:
    """Write every row again with `score` and `components`, and return n, the mean score and the number of rows that break each rule.

    With `group_field` the rows of one question are one group, for rewards that compare rollouts; without it, each row is a group.

    Raises:
        DataError: the file is missing, or a row lacks a field or has one of the wrong type; nothing is written then.
    """
    rows = list(read_rows(source))
    scored: list[tuple[Trajectory, Reward]] = []
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        trajectory = trajectory_field(row, response_field, source, number, method)
        scored.append((trajectory, method.reward(trajectory, golden_field(row, gold_field, source, number))))
        key = json.dumps(field(row, group_field, source, number)) if group_field else number
        groups[key].append(len(scored) - 1)
    rewards: list[Reward] = [reward for _, reward in scored]
    for members in groups.values():
        for index, reward in zip(members, method.regroup(*zip(*(scored[i] for i in members), strict=True)), strict=True):
            rewards[index] = reward
    write_jsonl(
        out,
        ({**row, "score": reward.score, "components": reward.components} for row, reward in zip(rows, rewards, strict=True)),
    )
    broken = Counter(
        rule
        for (trajectory, _), reward in zip(scored, rewards, strict=True)
        for rule in broken_rules(reward.components, float(method.well_formed(trajectory)))
    )
    return {
        "n": len(rows),
        "mean_score": round(sum(reward.score for reward in rewards) / len(rows), 4),
        "rows_that_break": dict(sorted(broken.items())),
    }
