"""``python -m evaluation baseline NAME``: run FlashRAG's own pipelines on the served model and the retrieval service that `run` uses.

| name | what | pipeline |
|---|---|---|
| direct | the question alone | SequentialPipeline.naive_run |
| naive_rag | one search with the question | SequentialPipeline |
| iter_retgen | three rounds of search with question and last answer (Shao et al., 2023) | IterativePipeline |
| ircot | a search with each thought (Trivedi et al., 2023) | IRCOTPipeline |
| flare | a search where the next sentence is uncertain (Jiang et al., 2023) | FLAREPipeline |

Every question is a data set of its own, so that searches, tokens and seconds are counted per question and a kill loses only questions
under way. The records have the form of `run`'s, and say whether the prompts went through the chat template. FlashRAG's `Config` sets
environment variables and random seeds of its process, so do not use this in a trainer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx

from evaluation.flashrag_parts import ServedGenerator, ServedRetriever, ShownGenerator
from evaluation.flashrag_prompt import CHOICES, set_form, uses_chat_template
from research_rl.errors import ConfigError, missing_extra
from research_rl.files import write_text
from research_rl.inference.context import LONGER
from research_rl.inference.openai_server import CompletionsServer
from research_rl.inference.protocol import TOP_K
from research_rl.inference.reconnect import LIMITS, Reconnecting
from research_rl.inference.sampling import read_log
from research_rl.inference.served import keep_settings
from research_rl.metrics import METRICS, normalize_answer
from research_rl.questions import read_questions

NAMES = ("direct", "naive_rag", "iter_retgen", "ircot", "flare")
DIRECT = "Answer the question from what you know. Give only the answer, without any other words."


def add_baseline(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "baseline",
        help="FlashRAG's pipelines on the same model, service and questions as `run`",
        example="python -m evaluation baseline naive_rag --model mine --tokenizer runs/quickstart/model \\\n    "
        "--questions test.jsonl --out naive_rag.jsonl",
    )
    parser.add_argument("name", choices=NAMES, help="the pipeline")
    parser.add_argument("--questions", type=Path, required=True, help="FlashRAG questions, JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="file for the records, in the form of `run`'s")
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1", help="base URL of the server, ending in /v1")
    parser.add_argument("--model", required=True, help="the model's name on that server")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id; the chat template is taken from it")
    add_prompt_options(parser)
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens of one generation")
    parser.add_argument(
        "--max-input-tokens", type=int, default=4096, help="most tokens of a prompt; longer ones lose their middle"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="questions under way at a time")
    parser.set_defaults(run=run_baseline)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that determine a baseline's prompts."""
    parser.add_argument(
        "--chat-template",
        default="auto",
        choices=CHOICES,
        help="auto: use it if the tokenizer has one (never for ircot, whose prompt is plain text); on or off: always or never",
    )
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000", help="the retrieval service")
    parser.add_argument("--top-k", type=int, default=TOP_K, help="passages per search")


def run_baseline(options: argparse.Namespace) -> dict[str, Any]:
    """Answer the questions that are not in the log yet, and return the summary, which is written beside it as well.

    Raises:
        ConfigError: the tokenizer has no chat template that works, and one was asked for; or the server's context is too short.
        GenerationError, RetrievalError: a server is unavailable. Run again, the command continues.
        MissingExtraError: FlashRAG is not installed.
    """
    # FlashRAG prints a line per question; the threads' output is redirected, too
    with contextlib.redirect_stdout(sys.stderr):
        return _run(options)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from evaluation.run import summarize  # imports SciPy: if it is missing, that is reported before the first question

    config, tokenizer, chat = prepare(options)
    questions = list(read_questions(options.questions))
    keep_settings(options, options.out)
    done = read_log(options.out)
    left = [row for row in questions if row["id"] not in done]
    started = time.monotonic()
    retries = _answer_all(options, config, tokenizer, chat, left, len(done)) if left else 0
    logged = read_log(options.out)
    records = [logged[row["id"]][1] for row in questions]
    form = {"chat_template": chat, "cut_prompts": sum(one["cut_prompts"] for one in records)}
    last_run = {"seconds": round(time.monotonic() - started, 1), "retries": retries}
    summary = summarize([[one] for one in records])
    figures = {"model": options.model, "method": f"baseline {options.name}", **form, **summary, "last_run": last_run}
    write_text(options.out.with_name(f"{options.out.stem}.summary.json"), json.dumps(figures, indent=1) + "\n")
    return figures


def prepare(options: argparse.Namespace) -> tuple[Any, Any, bool]:
    """Return FlashRAG's configuration, the tokenizer, and whether prompts go through its chat template.

    Raises:
        ConfigError: the tokenizer has no chat template that works, and one was asked for.
        MissingExtraError: FlashRAG is not installed.
    """
    os.environ["TQDM_DISABLE"] = "1"  # FlashRAG would show a progress bar for every question
    try:
        from flashrag.config import Config
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "flashrag-dev", "flashrag") from error
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = Config(config_dict={
        "generator_model_path": options.tokenizer, "framework": "hf", "metrics": [], "disable_save": True,
        "save_dir": str(options.out.parent), "dataset_name": "served", "gpu_id": "", "retrieval_topk": options.top_k,
    })  # fmt: skip  # many arguments
    return config, tokenizer, uses_chat_template(options.chat_template, options.name, tokenizer)


def _answer_all(
    options: argparse.Namespace, config: Any, tokenizer: Any, chat: bool, rows: list[dict[str, Any]], done: int
) -> int:
    """Append a record of every row to the log; return the number of repeated requests. `done`: the number of records that exist already."""
    from tqdm import tqdm

    longest = max_input_tokens(options)
    reconnecting = Reconnecting()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        httpx.Client(timeout=600, limits=LIMITS) as http,
        options.out.open("a", encoding="utf-8", buffering=1) as log,
        ThreadPoolExecutor(options.concurrency) as pool,
        tqdm(total=done + len(rows), initial=done, unit="question", disable=None) as progress,
    ):
        post = reconnecting(http.post)

        def one(row: dict[str, Any]) -> dict[str, Any]:
            generator = ServedGenerator(
                options.model_url, options.model, options.max_tokens, tokenizer, post, longest, add_special_tokens=not chat
            )
            retriever = ServedRetriever(options.retrieval_url, options.top_k)
            return record(row, answer(options, config, generator, retriever, row, chat), generator, retriever, chat)

        try:
            # as they finish: a slow question does not delay the records of those that are done
            for finished in as_completed([pool.submit(one, row) for row in rows]):
                log.write(json.dumps(finished.result(), ensure_ascii=False) + "\n")
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return reconnecting.retries


def max_input_tokens(options: argparse.Namespace) -> int:
    """Return the most tokens of a prompt: as asked for, or (with a warning) what a generation leaves of a shorter context.

    Raises:
        ConfigError: a generation alone fills the context.
    """

    async def ask() -> int | None:
        server = CompletionsServer(options.model_url, options.model)
        try:
            return await server.context()
        finally:
            await server.close()

    context = asyncio.run(ask())
    if context is None or options.max_input_tokens + options.max_tokens <= context:
        return options.max_input_tokens
    room = context - options.max_tokens
    if room < 1:
        raise ConfigError(
            f"--max-tokens {options.max_tokens} fills the context of the model's server, {context:,} tokens: {LONGER}"
        )
    logging.getLogger(__name__).warning(
        f"the model's server allows {context:,} tokens for prompt and generation together: prompts are cut to {room:,}, "
        f"not {options.max_input_tokens:,}; for more, {LONGER}"
    )
    return room


def answer(
    options: argparse.Namespace,
    config: Any,
    generator: ServedGenerator | ShownGenerator,
    retriever: ServedRetriever,
    row: dict[str, Any],
    chat: bool,
) -> str:
    """Return the answer of a FlashRAG pipeline to one question: the first line of its output. Of the options, only
    `name` and, for flare, `max_tokens` are read."""
    from flashrag.dataset.dataset import Dataset, Item
    from flashrag.pipeline import FLAREPipeline, IRCOTPipeline, IterativePipeline, SequentialPipeline
    from flashrag.prompt import PromptTemplate
    from flashrag.utils import ircot_pred_parse

    item: Any = Item({"id": row["id"], "question": row["question"], "golden_answers": row["golden_answers"]})
    dataset = Dataset(config, data=[item])
    parts: dict[str, Any] = {"retriever": retriever, "generator": generator}
    if options.name == "direct":
        parts["prompt_template"] = PromptTemplate(config, system_prompt=DIRECT, user_prompt="Question: {question}")
    if options.name == "flare":
        parts["look_ahead_steps"] = options.max_tokens
    kind = {"iter_retgen": IterativePipeline, "ircot": IRCOTPipeline, "flare": FLAREPipeline}.get(
        options.name, SequentialPipeline
    )
    pipeline = kind(config, **parts)
    set_form(pipeline.prompt_template, generator.tokenizer, chat)
    parse = {"pred_process_fun": ircot_pred_parse} if options.name == "ircot" else {}
    ask = pipeline.naive_run if options.name == "direct" else pipeline.run
    ask(dataset, do_eval=False, **parse)
    said = str(dataset.pred[0]).strip()
    return said.split("\n")[0].strip()


def record(
    row: dict[str, Any], said: str, generator: ServedGenerator, retriever: ServedRetriever, chat: bool
) -> dict[str, Any]:
    """Return the record of one question, in the form of `run`'s records."""
    golden = row["golden_answers"]
    metrics = {
        name: METRICS[name](said, golden, normalize_answer) if said else 0.0 for name in ("em", "f1", "cover_em_substring")
    }
    return {
        "id": row["id"], "n": 1, "question": row["question"], "golden_answers": golden, "answer": said,
        "metadata": row.get("metadata") or {},
        "sampled_tokens": generator.tokens_out, "prompt_tokens": generator.tokens_in, "generate_s": round(generator.seconds, 3),
        "search_s": round(retriever.seconds, 3), "chat_template": chat, "cut_prompts": generator.cut_prompts,
        "metrics": {**metrics, "searches": float(retriever.searches), "retrieval_rate": float(retriever.searches > 0)},
    }  # fmt: skip  # a record
