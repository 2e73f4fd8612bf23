"""``python -m evaluation baseline NAME``: FlashRAG's own pipelines over the served model and the retrieval service that `run` uses.

| name | what | pipeline |
|---|---|---|
| direct | the question alone | SequentialPipeline.naive_run |
| naive_rag | one search with the question | SequentialPipeline |
| iter_retgen | three rounds of search with question and last answer (Shao et al., 2023) | IterativePipeline |
| ircot | a search with each thought (Trivedi et al., 2023) | IRCOTPipeline |
| flare | a search where the next sentence is uncertain (Jiang et al., 2023) | FLAREPipeline |

Every question is a data set of its own, so that searches, tokens and seconds are counted per question and a kill loses only what is under
way. The records have the form of `run`'s. FlashRAG's `Config` sets environment variables and seeds of its process: never in a trainer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx

from evaluation.run import summarize
from research_rl.errors import GenerationError, missing_extra
from research_rl.files import write_text
from research_rl.inference.protocol import TOP_K
from research_rl.inference.reconnect import LIMITS, Reconnecting, gone
from research_rl.inference.sampling import read_log
from research_rl.inference.served import keep_settings
from research_rl.metrics import METRICS, normalize_answer
from research_rl.questions import read_questions
from research_rl.retrieval import RetrievalClient, RetrievalSettings

NAMES = ("direct", "naive_rag", "iter_retgen", "ircot", "flare")
MOST_STOPS = 4  # strings, in the OpenAI API
DIRECT = "Answer the question from what you know. Give only the answer, without any other words."


def add_baseline(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("baseline", help="FlashRAG's pipelines on the same model, service and questions as `run`")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--questions", type=Path, required=True, help="FlashRAG questions, JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="records as `run` writes them")
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1", help="base URL of the server, ending in /v1")
    parser.add_argument("--model", required=True, help="the model's name on that server")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id; FlashRAG takes the chat template from it")
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000")
    parser.add_argument("--top-k", type=int, default=TOP_K)
    parser.add_argument("--max-tokens", type=int, default=64, help="of one generation")
    parser.add_argument("--max-input-tokens", type=int, default=4096, help="longer prompts lose their middle")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.set_defaults(run=run_baseline)


def cut(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class ServedGenerator:
    """What FlashRAG's pipelines need of a generator, over ``POST /completions``; counts what it costs. One per question."""

    def __init__(self, url: str, model: str, max_tokens: int, tokenizer: Any, post: Callable[..., httpx.Response]) -> None:
        """`post` sends a request, as `httpx.Client.post` does."""
        self._url, self._model, self._max_tokens, self._post = url.rstrip("/"), model, max_tokens, post
        self.tokenizer = tokenizer
        self.tokens_in = self.tokens_out = 0
        self.seconds = 0.0

    def generate(
        self, input_list: str | Sequence[str], batch_size: int | None = None, return_scores: bool = False, **params: Any
    ) -> Any:
        """Return the texts, and with `return_scores` the probability of every sampled token.

        Raises:
            GenerationError: the server cannot be reached or refuses.
        """
        texts, scores = [], []
        for prompt in [input_list] if isinstance(input_list, str) else input_list:
            choice = self._complete(prompt, params, return_scores)
            texts.append(cut(choice["text"], params.get("stop") or ()))
            if return_scores:
                scores.append([math.exp(value) for value in choice["logprobs"]["token_logprobs"]])
        return (texts, scores) if return_scores else texts

    def _complete(self, prompt: str, params: dict[str, Any], logprobs: bool) -> dict[str, Any]:
        body = {
            "model": self._model, "prompt": prompt, "temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0,
            "max_tokens": params.get("max_new_tokens") or params.get("max_tokens") or self._max_tokens,
            **({"logprobs": 1} if logprobs else {}),
        }  # fmt: skip
        stops = sorted(set(params.get("stop") or ()))
        if 0 < len(stops) <= MOST_STOPS:  # with more, the text is cut here
            body["stop"] = stops
        started = time.monotonic()
        try:
            response = self._post(f"{self._url}/completions", json=body)
        except httpx.TransportError as error:
            raise gone(self._url, error) from error
        if response.status_code != 200:
            raise GenerationError(f"{self._url}/completions refused with HTTP {response.status_code}: {response.text[:300]}")
        answer = response.json()
        self.seconds += time.monotonic() - started
        self.tokens_in += answer["usage"]["prompt_tokens"]
        self.tokens_out += answer["usage"]["completion_tokens"]
        return answer["choices"][0]


class ServedRetriever:
    """What FlashRAG's pipelines need of a retriever, over our service; counts searches. One per question."""

    def __init__(self, url: str, top_k: int) -> None:
        self._settings, self._top_k = RetrievalSettings(url), top_k
        self.searches, self.seconds = 0, 0.0

    def batch_search(self, query: Sequence[str], num: int | None = None, return_score: bool = False) -> Any:
        """Return each query's passages ``{"id", "contents"}``, and their scores if asked for; none for a blank query, which is not sent."""
        sent = [text for text in query if text.strip()]
        self.searches += len(sent)
        started = time.monotonic()

        async def ask() -> Any:
            async with RetrievalClient(self._settings) as client:
                return await client.search(sent, num or self._top_k)

        results = iter(asyncio.run(ask()) if sent else ())
        found = [next(results) if text.strip() else [] for text in query]
        self.seconds += time.monotonic() - started
        documents = [[{"id": passage.id, "contents": passage.contents} for passage in row] for row in found]
        return (documents, [[passage.score for passage in row] for row in found]) if return_score else documents

    def search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        """Return one query's passages."""
        found = self.batch_search([query], num, return_score)
        return (found[0][0], found[1][0]) if return_score else found[0]


def run_baseline(options: argparse.Namespace) -> dict[str, Any]:
    """Answer what the log does not have, and return the summary, which is written beside it as well.

    Raises:
        GenerationError, RetrievalError: a server is gone; run again, it goes on.
        MissingExtraError: FlashRAG is not installed.
    """
    os.environ["TQDM_DISABLE"] = "1"  # FlashRAG's bars, one per question; ours says what it wants
    try:
        from flashrag.config import Config
        from tqdm import tqdm
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "flashrag-dev", "flashrag") from error
    questions = list(read_questions(options.questions))
    keep_settings(options, options.out)
    config = Config(config_dict={
        "generator_model_path": options.tokenizer, "framework": "hf", "generator_max_input_len": options.max_input_tokens, "metrics": [],
        "disable_save": True, "save_dir": str(options.out.parent), "dataset_name": "served", "gpu_id": "", "retrieval_topk": options.top_k,
    })  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    done = read_log(options.out)
    left = [row for row in questions if row["id"] not in done]
    reconnecting = Reconnecting()
    started = time.monotonic()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        httpx.Client(timeout=600, limits=LIMITS) as http,
        options.out.open("a", encoding="utf-8", buffering=1) as log,
        ThreadPoolExecutor(options.concurrency) as pool,
        tqdm(total=len(questions), initial=len(done), unit="question", disable=None) as progress,
    ):
        post = reconnecting(http.post)

        def one(row: dict[str, Any]) -> dict[str, Any]:
            generator = ServedGenerator(options.model_url, options.model, options.max_tokens, tokenizer, post)
            retriever = ServedRetriever(options.retrieval_url, options.top_k)
            return record(row, answer(options.name, config, generator, retriever, row), generator, retriever)

        try:
            for finished in as_completed(
                [pool.submit(one, row) for row in left]
            ):  # not in order: a slow one keeps none off the log
                log.write(json.dumps(finished.result(), ensure_ascii=False) + "\n")
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    logged = read_log(options.out)
    summary = summarize([[logged[row["id"]][1]] for row in questions])
    last_run = {"seconds": round(time.monotonic() - started, 1), "retries": reconnecting.retries}
    figures = {"model": options.model, "method": f"baseline {options.name}", **summary, "last_run": last_run}
    write_text(options.out.with_name(f"{options.out.stem}.summary.json"), json.dumps(figures, indent=1) + "\n")
    return figures


def answer(name: str, config: Any, generator: ServedGenerator, retriever: ServedRetriever, row: dict[str, Any]) -> str:
    """Return the answer of a FlashRAG pipeline to one question: the first line of what it says."""
    from flashrag.dataset.dataset import Dataset, Item
    from flashrag.pipeline import FLAREPipeline, IRCOTPipeline, IterativePipeline, SequentialPipeline
    from flashrag.prompt import PromptTemplate
    from flashrag.utils import ircot_pred_parse

    item: Any = Item({"id": row["id"], "question": row["question"], "golden_answers": row["golden_answers"]})
    dataset = Dataset(config, data=[item])
    served = {"retriever": retriever, "generator": generator}
    if name == "direct":
        template = PromptTemplate(config, system_prompt=DIRECT, user_prompt="Question: {question}")
        SequentialPipeline(config, template, **served).naive_run(dataset, do_eval=False)
    elif name == "ircot":
        IRCOTPipeline(config, **served).run(dataset, do_eval=False, pred_process_fun=ircot_pred_parse)
    else:
        kind = {"naive_rag": SequentialPipeline, "iter_retgen": IterativePipeline, "flare": FLAREPipeline}[name]
        kind(config, **served).run(dataset, do_eval=False)
    said = str(dataset.pred[0]).strip()
    return said.split("\n")[0].strip()


def record(row: dict[str, Any], said: str, generator: ServedGenerator, retriever: ServedRetriever) -> dict[str, Any]:
    """Return what is kept of one question, in the form of `run`'s records."""
    golden = row["golden_answers"]
    metrics = {
        name: METRICS[name](said, golden, normalize_answer) if said else 0.0 for name in ("em", "f1", "cover_em_substring")
    }
    return {
        "id": row["id"], "n": 1, "question": row["question"], "golden_answers": golden, "answer": said,
        "metadata": row.get("metadata") or {},
        "sampled_tokens": generator.tokens_out, "prompt_tokens": generator.tokens_in, "generate_s": round(generator.seconds, 3),
        "search_s": round(retriever.seconds, 3),
        "metrics": {**metrics, "searches": float(retriever.searches), "retrieval_rate": float(retriever.searches > 0)},
    }  # fmt: skip
