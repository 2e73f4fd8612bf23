"""``python -m data_preprocess coverage``: can these questions be answered from this corpus, and does the index find what is there."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.errors import ConfigError
from research_rl.files import write_text
from research_rl.metrics import answer_rank, is_yes_no
from research_rl.questions import clean, read_questions
from research_rl.recall import searched
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.types import Passage

if TYPE_CHECKING:
    from data_preprocess.coverage import Asked

_ROWS = {
    "answer_in_corpus": "an answer is in the corpus",
    "supporting_in_corpus": "all supporting passages are in the corpus",
    "answer_in_supporting": "an answer is in one of its supporting passages",
}


def add_coverage(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "coverage",
        help="what a corpus holds of the answers and evidence of questions",
        example="python -m data_preprocess coverage --questions data/nq/train.jsonl --passages corpus.jsonl",
    )
    parser.add_argument(
        "--questions", type=Path, nargs="+", required=True, help="FlashRAG questions, JSON lines, plain or .gz; a set a file"
    )
    parser.add_argument("--passages", type=Path, nargs="+", required=True, help="the corpus: JSON lines, plain or .gz")
    parser.add_argument("--retrieval-url", default=None, help="also ask this service the bare questions")
    parser.add_argument("--top-k", default="1,3,5,10", help="numbers of passages of the service (default 1,3,5,10)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, default=None, help="write the figures to this JSON file, too")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.set_defaults(run=run_coverage)


def run_coverage(options: argparse.Namespace) -> dict[str, Any] | str:
    """Return the figures of every set, as a table or for JSON.

    Raises:
        ConfigError: --top-k is no list of positive numbers.
        DataError: a file is missing or malformed.
        RetrievalError: the service does not answer.
    """
    from data_preprocess.coverage import Asked, figures, scan  # with the readers of corpora

    ranks = _numbers(options.top_k)
    sets = [[Asked.of(row) for row in read_questions(path)] for path in options.questions]
    seen = scan([asked for questions in sets for asked in questions], options.passages, options.workers)
    result: dict[str, Any] = {"passages": seen.passages, "corpus": [str(path) for path in options.passages], "sets": []}
    first = 0
    for path, questions in zip(options.questions, sets, strict=True):
        found = {"file": str(path), **figures(questions, first, seen)}
        if options.retrieval_url:
            found |= asyncio.run(ask(questions, options.retrieval_url, ranks, found["supporting_by"] == "id"))
        result["sets"].append(found)
        first += len(questions)
    if options.out:
        write_text(options.out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result if options.json else table(result)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if not all(numbers):
        raise ConfigError(f"--top-k takes positive numbers, for example 1,3,5,10; got {text!r}")
    return sorted(set(numbers))


async def ask(questions: Sequence[Asked], url: str, ranks: Sequence[int], by_id: bool) -> dict[str, Any]:
    """Return, for each k, how many bare questions have a golden answer and how many all supporting passages among the first k."""
    from data_preprocess.coverage import share

    answers: list[int] = []
    evidence: list[int] = []
    async with RetrievalClient(RetrievalSettings(url)) as client:
        async for asked, passages in searched(questions, lambda asked: asked.question, client.search, max(ranks), "data"):
            if not is_yes_no(asked.golden_answers):
                answers.append(answer_rank((passage.contents for passage in passages), asked.golden_answers))
            if asked.supporting_ids or asked.supporting_titles:
                evidence.append(evidence_rank(asked, passages, by_id))
    return {
        name: {str(k): share(sum(0 < rank <= k for rank in found), len(found)) for k in ranks}
        for name, found in (("answer_at", answers), ("supporting_at", evidence))
    }


def evidence_rank(asked: Asked, passages: Sequence[Passage], by_id: bool) -> int:
    """Return the rank (from 1) by which the last of a question's supporting passages is found, 0 if one is not."""
    if asked.supporting_ids and (by_id or not asked.supporting_titles):
        wanted, found = asked.supporting_ids, [passage.id for passage in passages]
    else:
        wanted, found = asked.supporting_titles, [clean(passage.contents.partition("\n")[0]) for passage in passages]
    return max(found.index(one) + 1 for one in wanted) if set(wanted) <= set(found) else 0


def table(result: dict[str, Any]) -> str:
    """Return the result as text: a column a set, shares in percent."""
    sets = result["sets"]
    names = [Path(found["file"]).name for found in sets]
    rows = [("", names if len(set(names)) == len(names) else [found["file"] for found in sets])]
    rows.append(("questions", [f"{found['questions']:,}" for found in sets]))
    rows.append(("  by yes or no (in no passage to be found)", [f"{found['yes_no']:,}" for found in sets]))
    rows += [(text, [_percent(found[name]) for found in sets]) for name, text in _ROWS.items()]
    for name, text in (("answer_at", "an answer"), ("supporting_at", "all supporting passages")):
        for k in sets[0].get(name, ()):
            rows.append((f"top {k} of the bare question: {text}", [_percent(found[name][k]) for found in sets]))
    rows = [row for row in rows if set(row[1]) != {"-"}]
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(sets))]
    left = max(len(text) for text, _ in rows)
    lines = [f"{result['passages']:,} passages of {', '.join(result['corpus'])}"]
    lines += [
        f"{text:<{left}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for text, cells in rows
    ]
    lines += [
        f"{name}: no question has its supporting passages in the corpus. Are its supporting_ids the ids of these passages?"
        for name, found in zip(names, sets, strict=True)
        if found["supporting_in_corpus"]["of"] and not found["supporting_in_corpus"]["count"]
    ]
    return "\n".join(lines)


def _percent(found: dict[str, Any]) -> str:
    return "-" if found["share"] is None else f"{100 * found['count'] / found['of']:.1f} %"
