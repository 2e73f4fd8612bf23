"""``python -m evaluation judge``: a language model decides whether predictions are right (`llm_judge` of the papers).

Any OpenAI-compatible chat server; temperature 0. Every verdict is appended to a cache as it comes, under the hash of model and prompt, so
that nothing is asked or paid for twice. The criteria are those of R1-Searcher and of ReSearch, in our words.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
from pathlib import Path
from string import Template
from typing import Any

from evaluation.jsonl import field, golden_field, read_rows, text_field
from evaluation.statistics import estimate
from research_rl.errors import DataError, GenerationError, missing_extra
from research_rl.files import whole_lines, write_jsonl

_TEMPLATES = Path(__file__).parent / "templates"
CRITERIA = ("r1_searcher", "research")
_TRUE, _FALSE = {"true", "correct"}, {"false", "incorrect"}


def add_judge(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("judge", help="a language model decides whether predictions are right")
    parser.add_argument("input", type=Path, help="JSON lines, plain or .gz; what `run` writes, or anybody's")
    parser.add_argument(
        "--out", type=Path, required=True, help="every row again, with `judge` (true or false) and `judge_said`"
    )
    parser.add_argument("--question-field", default="question")
    parser.add_argument("--pred-field", default="answer")
    parser.add_argument("--gold-field", default="golden_answers")
    parser.add_argument("--criterion", default="r1_searcher", choices=CRITERIA, help="whose criterion")
    parser.add_argument("--judge-url", default="https://api.openai.com/v1", help="base URL; the key comes from OPENAI_API_KEY")
    parser.add_argument("--judge-model", required=True)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a verdict")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--cache", type=Path, default=None, help="default: OUT.cache.jsonl")
    parser.add_argument(
        "--price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"), help="of a million tokens, for the cost"
    )
    parser.set_defaults(run=run_judge)


def prompt(criterion: str, question: str, golden_answers: list[str], prediction: str) -> str:
    """Return the judge's prompt; several golden answers are shown as a JSON list."""
    golden = golden_answers[0] if len(golden_answers) == 1 else json.dumps(golden_answers, ensure_ascii=False)
    template = Template((_TEMPLATES / f"judge_{criterion}.txt").read_text(encoding="utf-8"))
    return template.substitute(question=question, golden_answers=golden, prediction=prediction or "(no answer)").rstrip("\n")


def verdict(text: str) -> bool | None:
    """Return what a judge said: its last "true", "false", "correct" or "incorrect"; None if it said none of them."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in _TRUE | _FALSE]
    return words[-1] in _TRUE if words else None


def run_judge(options: argparse.Namespace) -> dict[str, Any]:
    """Judge what the cache does not know, write the rows with their verdicts, and return share, interval and cost.

    An empty or null prediction is wrong without being asked about.

    Raises:
        DataError: a row lacks a field, or the judge said neither yes nor no to some: a metric that cannot be computed ends the run.
        GenerationError: the server cannot be reached, or refuses.
    """
    source = options.input
    rows = list(read_rows(source))
    prompts: list[str | None] = []
    for number, row in enumerate(rows, 1):
        silent = not field(row, options.pred_field, source, number)
        prompts.append(
            None if silent else prompt(
                options.criterion, text_field(row, options.question_field, source, number),
                golden_field(row, options.gold_field, source, number), text_field(row, options.pred_field, source, number),
            )
        )  # fmt: skip
    cache_file = options.cache or options.out.with_name(f"{options.out.stem}.cache.jsonl")
    said = {row["key"]: row for row in map(json.loads, whole_lines(cache_file))}
    left = list(dict.fromkeys(text for text in prompts if text is not None and _key(options.judge_model, text) not in said))
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(_ask(options, left, said, cache_file))
    answers = [None if text is None else said[_key(options.judge_model, text)] for text in prompts]
    verdicts = [False if answer is None else verdict(answer["text"]) for answer in answers]
    if unclear := [number for number, found in enumerate(verdicts, 1) if found is None]:
        raise DataError(
            f"{source}: the judge gave no verdict on {len(unclear)} rows (the first: row {unclear[0]}, "
            f"{answers[unclear[0] - 1]['text'][:80]!r}): raise --max-tokens or take another judge; all answers are in {cache_file}"  # type: ignore[index]
        )
    write_jsonl(
        options.out,
        ({**row, "judge": found, "judge_said": answer["text"] if answer else ""}
         for row, found, answer in zip(rows, verdicts, answers, strict=True)),
    )  # fmt: skip
    share = estimate([float(bool(found)) for found in verdicts])
    tokens = [sum(answer[kind] for answer in answers if answer) for kind in ("tokens_in", "tokens_out")]
    cost = sum(count * price / 1e6 for count, price in zip(tokens, options.price, strict=True))
    return {
        "n": len(rows), "judge": round(share.mean, 4), "interval": [round(share.low, 4), round(share.high, 4)],
        "criterion": options.criterion, "judge_model": options.judge_model, "asked_now": len(left), "tokens_in": tokens[0],
        "tokens_out": tokens[1], "cost": round(cost, 4),
    }  # fmt: skip


def _key(model: str, text: str) -> str:
    return hashlib.sha256(f"{model}\n{text}".encode()).hexdigest()


async def _ask(options: argparse.Namespace, prompts: list[str], said: dict[str, dict[str, Any]], cache_file: Path) -> None:
    try:
        from openai import AsyncOpenAI, OpenAIError
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "openai", "eval") from error
    if not prompts:
        return
    gate = asyncio.Semaphore(options.concurrency)
    with (
        cache_file.open("a", encoding="utf-8", buffering=1) as cache,
        tqdm(total=len(prompts), unit="verdict", disable=None) as progress,
    ):
        async with AsyncOpenAI(
            base_url=options.judge_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=5
        ) as client:

            async def one(asked: str) -> None:
                async with gate:
                    answer = await client.chat.completions.create(
                        model=options.judge_model, messages=[{"role": "user", "content": asked}], temperature=0.0,
                        max_tokens=options.max_tokens,
                    )  # fmt: skip
                usage = answer.usage
                row = {
                    "key": _key(options.judge_model, asked), "text": answer.choices[0].message.content or "",
                    "tokens_in": usage.prompt_tokens if usage else 0, "tokens_out": usage.completion_tokens if usage else 0,
                }  # fmt: skip
                said[row["key"]] = row
                cache.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress.update()

            try:
                async with asyncio.TaskGroup() as tasks:
                    for asked in prompts:
                        tasks.create_task(one(asked))
            except* OpenAIError as group:
                first = group.exceptions[0]
                raise GenerationError(
                    f"the judge at {options.judge_url} failed: {type(first).__name__}: {str(first)[:300]}"
                ) from first
