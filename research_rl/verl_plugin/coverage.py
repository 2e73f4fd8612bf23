"""What retrieval can give a run at all: for a sample of its questions, is a golden answer among the passages of the bare question."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from research_rl.metrics import answer_rank, is_yes_no
from research_rl.questions import question_of
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.training.settings import Settings
from research_rl.types import Passage
from research_rl.verl_plugin.data_checks import COLUMNS, read_rows

LOW = 0.2  # share of the sample below which a run is warned
_WAIT_S = 20.0  # for a service: what it may tell is not worth more


def tell_coverage(config: Any, settings: Settings) -> None:
    """Print a line for each training and validation file on this machine. Questions answered by yes or no are not asked: no passage can be
    said to hold that. Whatever fails is printed, and the run goes on."""
    if not settings.coverage_sample:
        return
    for name in ("train_files", "val_files"):
        files = [config.data[name]] if isinstance(config.data[name], str) else list(config.data[name])
        for file in (file for file in files if "://" not in file):
            try:
                found, asked = asyncio.run(_found(sample(file, settings.coverage_sample), settings))
            except Exception as error:  # this check costs no run, whatever a service or a file has in store
                print(f"research_rl: coverage of {Path(file).name} not measured: {type(error).__name__}: {error}")
                continue
            print(f"research_rl: {_told(found, asked, Path(file).name, settings.top_k)}")


def sample(file: str, count: int) -> list[tuple[str, str, list[str]]]:
    """Return (data source, question, golden answers) of at most `count` rows of a file, the same at every start."""
    rows = []
    for row in read_rows(file, (*COLUMNS, "data_source")):
        question, golden = question_of(row)
        if not is_yes_no(golden):
            rows.append((str(row.get("data_source") or ""), question, golden))
    return random.Random(1).sample(rows, min(count, len(rows)))


async def _found(rows: Sequence[tuple[str, str, list[str]]], settings: Settings) -> tuple[int, int]:
    """Ask each service its questions in one request; return how many found an answer, and how many were asked."""
    by_service: dict[RetrievalSettings, list[tuple[str, list[str]]]] = defaultdict(list)
    for source, question, golden in rows:
        by_service[settings.retrieval_for(source)].append((question, golden))
    results = await asyncio.gather(*(_search(service, asked, settings.top_k) for service, asked in by_service.items()))
    found = [
        answer_rank((passage.contents for passage in passages), golden)
        for asked, batch in zip(by_service.values(), results, strict=True)
        for (_, golden), passages in zip(asked, batch, strict=True)
    ]
    return sum(rank > 0 for rank in found), len(found)


async def _search(service: RetrievalSettings, asked: Sequence[tuple[str, list[str]]], top_k: int) -> list[list[Passage]]:
    waiting = replace(service, deadline_s=min(_WAIT_S, service.deadline_s), timeout_s=min(_WAIT_S, service.timeout_s))
    async with RetrievalClient(waiting) as client:
        return await client.search([question for question, _ in asked], top_k)


def _told(found: int, asked: int, file: str, top_k: int) -> str:
    if not asked:
        return f"coverage: every question of {file} is answered by yes or no: nothing to look for"
    line = f"coverage: a golden answer is among the top {top_k} passages for {found} of {asked} sampled questions of {file} (bare question)"
    if found >= LOW * asked:
        return line
    return (
        f"{line}. WARNING: LESS THAN {LOW:.0%}. WHAT IS NOT IN THE CORPUS NO TRAINING CAN FIND (A CONTROL IS MEANT TO BE SO): "
        "python -m data_preprocess coverage tells which it is, corpus or index (docs/data.md)"
    )
