"""The coverage of a corpus: for a sample of a run's questions, do the passages found for the question contain a golden answer?"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from research_rl.errors import DataError
from research_rl.metrics import answer_rank, is_yes_no
from research_rl.questions import question_of
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.training.settings import Settings
from research_rl.types import Passage
from research_rl.verl_plugin.doctor.finding import Finding, check, ok, warning
from research_rl.verl_plugin.doctor.service import SILENT
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.rows import COLUMNS, files_of, sampled_rows

LOW = 0.2  # share of the sample below which there is a warning
_WAIT_S = {False: 20.0, True: 3.0}  # most seconds to wait for a service; True: in the command, which must be quick
_CHOICE = 5  # rows that are read for each row of a quick sample


@check("coverage", "not measured (research_rl.coverage_sample=0)", "settings")
def coverage(setup: Setup) -> Iterator[Finding]:
    """Measure each training and validation file on this machine. Questions answered by yes or no are left out, because no passage can
    be said to contain such an answer. A failure is a warning, and never ends a run."""
    settings, wait = setup.settings, _WAIT_S[setup.quick]
    assert settings is not None
    if not settings.coverage_sample:
        return
    for file in (
        file for name in ("train_files", "val_files") for file in files_of(setup.config.data, name) if "://" not in file
    ):
        try:
            rows = sample(file, settings.coverage_sample, setup.quick)
            asked_of = {settings.retrieval_for(source).address for source, _, _ in rows}
            if silent := sorted(asked_of & setup.measured.get(SILENT, set())):
                yield warning(f"{Path(file).name}: not measured: no service at {', '.join(silent)}")
                continue
            found, asked = asyncio.run(_found(rows, settings, wait))
        except DataError:  # reported by the check of the data
            continue
        except Exception as failure:  # whatever a service or a file may cause
            yield warning(f"{Path(file).name}: not measured: {type(failure).__name__}: {failure}")
            continue
        yield _told(found, asked, Path(file).name, settings.top_k)


def sample(file: str, count: int, quick: bool = False) -> list[tuple[str, str, list[str]]]:
    """Return (data source, question, golden answers) of at most `count` rows of a file, the same at every start.

    `quick`: choose from a part of the rows only.
    """
    rows = []
    found, _ = sampled_rows(file, _CHOICE * count if quick else None, (*COLUMNS, "data_source"))
    for _, row in found:
        question, golden = question_of(row)
        if not is_yes_no(golden):
            rows.append((str(row.get("data_source") or ""), question, golden))
    return random.Random(1).sample(rows, min(count, len(rows)))


async def _found(rows: Sequence[tuple[str, str, list[str]]], settings: Settings, wait_s: float) -> tuple[int, int]:
    """Search each service for its questions in one request; return how many found an answer, and how many were asked."""
    by_service: dict[RetrievalSettings, list[tuple[str, list[str]]]] = defaultdict(list)
    for source, question, golden in rows:
        by_service[settings.retrieval_for(source)].append((question, golden))
    results = await asyncio.gather(*(_search(service, asked, settings.top_k, wait_s) for service, asked in by_service.items()))
    found = [
        answer_rank((passage.contents for passage in passages), golden)
        for asked, batch in zip(by_service.values(), results, strict=True)
        for (_, golden), passages in zip(asked, batch, strict=True)
    ]
    return sum(rank > 0 for rank in found), len(found)


async def _search(
    service: RetrievalSettings, asked: Sequence[tuple[str, list[str]]], top_k: int, wait_s: float
) -> list[list[Passage]]:
    waiting = replace(service, deadline_s=min(wait_s, service.deadline_s), timeout_s=min(wait_s, service.timeout_s))
    async with RetrievalClient(waiting) as client:
        return await client.search([question for question, _ in asked], top_k)


def _told(found: int, asked: int, file: str, top_k: int) -> Finding:
    if not asked:
        return ok(f"every question of {file} is answered by yes or no: nothing to look for")
    what = (
        f"a golden answer is among the top {top_k} passages for {found} of {asked} sampled questions of {file} (bare question)"
    )
    if found >= LOW * asked:
        return ok(what)
    return warning(
        f"{what}. LESS THAN {LOW:.0%}: no training can find what is not in the corpus (of a control this is intended)",
        "",
        "python -m data_preprocess coverage shows whether corpus or index is the cause (docs/data.md)",
    )
