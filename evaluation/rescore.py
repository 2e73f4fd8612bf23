"""Rewards for recorded responses: what a method would have paid for them, and why."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research_rl.errors import DataError
from research_rl.files import write_jsonl
from research_rl.methods.base import Method
from research_rl.types import Reward, Trajectory


def rescore_file(
    source: Path, out: Path, method: Method, response_field: str, gold_field: str, group_field: str | None = None
) -> dict[str, Any]:
    """Write every row again with `score` and `components`, and return n, the mean score and the number of rows that break each rule.

    With `group_field` the rows of one question are one group, for rewards that compare rollouts; without, each row is its own.

    Raises:
        DataError: the file is missing, or a row lacks a field or has one of the wrong type; nothing is written then.
    """
    rows = list(_rows(source))
    scored: list[tuple[Trajectory, Reward]] = []
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        response, golden = _field(row, response_field, source, number), _field(row, gold_field, source, number)
        golden = [golden] if isinstance(golden, str) else golden
        if not isinstance(response, str):
            raise DataError(f"{source}, row {number}: {response_field} must be a text, got {response!r:.80}")
        if not isinstance(golden, list) or not golden or not all(isinstance(answer, str) for answer in golden):
            raise DataError(f"{source}, row {number}: {gold_field} must be a text or a list of texts, got {golden!r:.80}")
        trajectory = method.read(response)
        scored.append((trajectory, method.reward(trajectory, golden)))
        key = json.dumps(_field(row, group_field, source, number)) if group_field else number
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
        name.removeprefix("rule/")
        for reward in rewards
        for name, kept in reward.components.items()
        if name.startswith("rule/") and not kept
    )
    return {
        "n": len(rows),
        "mean_score": round(sum(reward.score for reward in rewards) / len(rows), 4),
        "rows_that_break": dict(sorted(broken.items())),
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"no file {path}")
    empty = True
    try:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as {'gzip of ' * (path.suffix == '.gz')}UTF-8 ({error})") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}), got {line.strip()[:80]!r}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON object is needed, got {line.strip()[:80]!r}")
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} holds no row")


def _field(row: dict[str, Any], name: str, source: Path, number: int) -> Any:
    if name not in row:
        raise DataError(f"{source}, row {number}: no field {name!r}; it has: {', '.join(row)}")
    return row[name]
