"""Generator and retriever for FlashRAG's pipelines, over a model's server and the retrieval service."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx

from research_rl.errors import GenerationError
from research_rl.inference.reconnect import gone
from research_rl.outages import FOREIGN
from research_rl.retrieval import RetrievalClient, RetrievalSettings

MOST_STOPS = 4  # stop strings of a request, in the OpenAI API


def cut(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class ServedGenerator:
    """A generator for FlashRAG's pipelines over ``POST /completions``, which counts tokens and seconds. One per question."""

    def __init__(
        self,
        url: str,
        model: str,
        max_tokens: int,
        tokenizer: Any,
        post: Callable[..., httpx.Response],
        max_input_tokens: int = 4096,
        add_special_tokens: bool = True,
    ) -> None:
        """`post` sends a request, like `httpx.Client.post`. `add_special_tokens`: False for text of a chat template, which has them."""
        self._url, self._model, self._max_tokens, self._post = url.rstrip("/"), model, max_tokens, post
        self._max_input_tokens, self._add_special_tokens = max_input_tokens, add_special_tokens
        self.tokenizer = tokenizer
        self.tokens_in = self.tokens_out = self.cut_prompts = 0
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

    def _encode(self, prompt: str) -> list[int]:
        """Return the prompt's ids; if they are too many, only both ends, where instruction and question are."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=self._add_special_tokens)
        if len(ids) <= self._max_input_tokens:
            return ids
        self.cut_prompts += 1
        end = self._max_input_tokens // 2
        return ids[: self._max_input_tokens - end] + ids[len(ids) - end :]

    def _complete(self, prompt: str, params: dict[str, Any], logprobs: bool) -> dict[str, Any]:
        body = {  # the server's default leaves special tokens out of the text, so that an answer has no end-of-turn token
            "model": self._model,
            "prompt": self._encode(prompt),
            "temperature": 0.0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "max_tokens": params.get("max_new_tokens") or params.get("max_tokens") or self._max_tokens,
            **({"logprobs": 1} if logprobs else {}),
        }
        stops = sorted(set(params.get("stop") or ()))
        if 0 < len(stops) <= MOST_STOPS:  # if there are more, the caller cuts the text
            body["stop"] = stops
        started = time.monotonic()
        try:
            response = self._post(f"{self._url}/completions", json=body)
        except httpx.RequestError as error:
            raise gone(self._url, error) from error
        if response.status_code != 200:
            raise GenerationError(f"{self._url}/completions refused with HTTP {response.status_code}: {response.text[:300]}")
        try:
            answer = response.json()
            used, chosen = answer["usage"], answer["choices"][0]
            self.tokens_in += used["prompt_tokens"]
            self.tokens_out += used["completion_tokens"]
        except FOREIGN as error:
            raise GenerationError(
                f"{self._url}/completions answered with something that is no completion: {response.text[:300]}"
            ) from error
        self.seconds += time.monotonic() - started
        return chosen


class ShownGenerator:
    """A generator that returns a given answer to every prompt, and records the prompts: rows to train on. One per question."""

    def __init__(self, answer: str, tokenizer: Any) -> None:
        self.answer, self.tokenizer = answer, tokenizer
        self.prompts: list[str] = []

    def generate(self, input_list: str | Sequence[str], **_: Any) -> list[str]:
        """Return the answer, once for every prompt."""
        prompts = [input_list] if isinstance(input_list, str) else list(input_list)
        self.prompts += prompts
        return [self.answer] * len(prompts)


class ServedRetriever:
    """A retriever for FlashRAG's pipelines over the retrieval service, which counts searches. One per question."""

    def __init__(self, url: str, top_k: int) -> None:
        self._settings, self._top_k = RetrievalSettings(url), top_k
        self.searches, self.seconds = 0, 0.0

    def batch_search(self, query: Sequence[str], num: int | None = None, return_score: bool = False) -> Any:
        """Return each query's passages ``{"id", "contents"}``, and their scores if asked for. A blank query is not sent, and has none."""
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
