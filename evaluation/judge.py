"""``python -m evaluation judge``: a language model decides whether predictions are right (`llm_judge` of the papers).

The judge runs on any OpenAI-compatible chat server, at temperature 0. Every reply is cached, so that nothing is asked or paid for twice.
Prompts, verdicts and client are those of a judge in the reward (research_rl.judge).
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from evaluation.jsonl import field, golden_field, read_rows, text_field
from research_rl.errors import ConfigError, DataError, JudgeError, missing_extra
from research_rl.files import write_jsonl
from research_rl.judge import CRITERIA, JudgeSettings, criterion, key, prompt, verdict
from research_rl.judge_cache import Replies
from research_rl.judge_client import JudgeClient
from research_rl.outages import HttpClient

_OPENAI = "https://api.openai.com/v1"
_KEY = "OPENAI_API_KEY"
_MOST_BYTES = 1_000_000  # of its list of models
_REACHED_S = 15.0  # in which a server must answer before the first prompt is sent
_DEADLINE_S = 600.0  # for one reply, retries included


def add_judge(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "judge",
        help="a language model decides whether predictions are right",
        example="python -m evaluation judge rollouts.jsonl --out judged.jsonl --judge-model gpt-4o-mini",
    )
    parser.add_argument("input", type=Path, help="JSON lines, plain or .gz; from `run` or any other source")
    parser.add_argument(
        "--out", type=Path, required=True, help="file for the rows, with `judge` (true or false) and `judge_said` added"
    )
    parser.add_argument("--question-field", default="question", help="the question, a text")
    parser.add_argument("--pred-field", default="answer", help="the predicted answer, a text")
    parser.add_argument("--gold-field", default="golden_answers", help="the golden answer, or a list of them")
    parser.add_argument("--criterion", default="r1_searcher", choices=CRITERIA, help="the paper whose criterion is used")
    parser.add_argument("--judge-url", default=_OPENAI, help="base URL; the key comes from OPENAI_API_KEY")
    parser.add_argument("--judge-model", required=True, help="the judge's name on that server")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens of a verdict")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way at a time")
    parser.add_argument("--cache", type=Path, default=None, help="file of the replies (default: OUT.cache.jsonl)")
    parser.add_argument(
        "--price",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("IN", "OUT"),
        help="prices of a million tokens, to compute the cost",
    )
    parser.set_defaults(run=run_judge)


def run_judge(options: argparse.Namespace) -> dict[str, Any]:
    """Judge the rows that are not in the cache, write all rows with their verdicts, and return share, interval and cost.

    An empty or null prediction is wrong, without a request.

    Raises:
        ConfigError: OpenAI's server is to be asked, and there is no key.
        DataError: a row lacks a field, or there is no verdict on some rows: a metric that cannot be computed ends the run.
        JudgeError: the server cannot be reached, or refuses.
    """
    from evaluation.statistics import estimate  # imports SciPy: if it is missing, that is reported before the first request

    source, template = options.input, criterion(options.criterion)
    rows = list(read_rows(source))
    prompts: list[str | None] = []
    for number, row in enumerate(rows, 1):
        silent = not field(row, options.pred_field, source, number)
        prompts.append(
            None
            if silent
            else prompt(
                template,
                text_field(row, options.question_field, source, number),
                golden_field(row, options.gold_field, source, number),
                text_field(row, options.pred_field, source, number),
            )
        )
    cache_file = options.cache or options.out.with_name(f"{options.out.stem}.cache.jsonl")
    replies = Replies(cache_file)
    left = list(dict.fromkeys(text for text in prompts if text is not None and not replies.get(key(options.judge_model, text))))
    if left:
        asyncio.run(_ask(options, left, replies))
    answers = [None if text is None else replies.get(key(options.judge_model, text)) for text in prompts]
    verdicts = [False if answer is None else verdict(answer.text) for answer in answers]
    judged = enumerate(zip(verdicts, answers, strict=True), 1)
    if unclear := [(number, answer.text) for number, (found, answer) in judged if found is None and answer]:
        number, said = unclear[0]
        raise DataError(
            f"{source}: the judge gave no verdict on {len(unclear)} rows (the first: row {number}, {said[:80]!r}): "
            f"raise --max-tokens or take another judge; all answers are in {cache_file}"
        )
    write_jsonl(
        options.out,
        (
            {**row, "judge": found, "judge_said": answer.text if answer else ""}
            for row, found, answer in zip(rows, verdicts, answers, strict=True)
        ),
    )
    share = estimate([float(bool(found)) for found in verdicts])
    tokens = [sum(getattr(answer, kind) for answer in answers if answer) for kind in ("tokens_in", "tokens_out")]
    cost = sum(count * price / 1e6 for count, price in zip(tokens, options.price, strict=True))
    return {
        "n": len(rows),
        "judge": round(share.mean, 4),
        "interval": [round(share.low, 4), round(share.high, 4)],
        "criterion": options.criterion,
        "judge_model": options.judge_model,
        "asked_now": len(left),
        "tokens_in": tokens[0],
        "tokens_out": tokens[1],
        "cost": round(cost, 4),
    }


async def _reach(url: str) -> None:
    """Wait for any answer of the server: a prompt would be sent again for ten minutes, without a word."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(httpx.RequestError),
            stop=stop_after_delay(_REACHED_S),
            wait=wait_fixed(1.0),
            reraise=True,
        ):
            with attempt:
                async with HttpClient(_MOST_BYTES, timeout=_REACHED_S) as http:
                    await http.get(f"{url.rstrip('/')}/models")
    except httpx.RequestError as error:
        raise JudgeError(
            f"no judge at {url}: {type(error).__name__} {error}. Is it running? Try: curl {url.rstrip('/')}/models"
        ) from error


async def _ask(options: argparse.Namespace, prompts: list[str], replies: Replies) -> None:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "tqdm", "eval") from error
    if options.judge_url == _OPENAI and not os.environ.get(_KEY):
        raise ConfigError(f"{_OPENAI} wants a key: set {_KEY}, or give --judge-url for a server of your own")
    section = {
        "url": options.judge_url,
        "model": options.judge_model,
        "max_tokens": options.max_tokens,
        "concurrency": options.concurrency,
        "api_key_env": _KEY if os.environ.get(_KEY) else None,
        "deadline_s": _DEADLINE_S,
        "timeout_s": _DEADLINE_S / 5,
    }
    settings = JudgeSettings.from_mapping(section)
    await _reach(options.judge_url)  # checked by now
    waiting = iter(prompts)
    with tqdm(total=len(prompts), unit="verdict", disable=None) as progress:
        async with JudgeClient(settings) as client:

            async def some() -> None:
                for asked in waiting:
                    replies.put(key(options.judge_model, asked), await client.ask(asked, must_be_clear=False))
                    progress.update()

            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(options.concurrency):
                        tasks.create_task(some())
            except* JudgeError as group:
                raise group.exceptions[0] from None
