"""`generate` of `rollout()` over an OpenAI-compatible server, with token ids in both directions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

from research_rl.errors import ConfigError, GenerationError
from research_rl.inference.context import served_context
from research_rl.inference.reconnect import LIMITS, LOST, Reconnecting, gone
from research_rl.outages import FOREIGN, HttpClient
from research_rl.rollout import Generation

_MOST_BYTES = 64_000_000  # of an answer
_LONGEST_S = 1_800.0  # of one generation, whatever arrives meanwhile


class CompletionsServer:
    """Uses `POST /v1/completions` with token ids in both directions. vLLM and SGLang can do this; a server of text only is refused."""

    def __init__(
        self, base_url: str, model: str, temperature: float = 0.0, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`base_url` ends in /v1; `transport` replaces the network in tests."""
        self._http = HttpClient(_MOST_BYTES, base_url=base_url.rstrip("/"), timeout=600, limits=LIMITS, transport=transport)
        self._model, self._temperature, self._url = model, temperature, base_url
        self._reconnecting = Reconnecting()

    @property
    def retries(self) -> int:
        """How many requests were sent again because their connection was lost."""
        return self._reconnecting.retries

    async def context(self) -> int | None:
        """Return how many tokens prompt and response may have together; None if the server does not state it.

        Raises:
            GenerationError: the server cannot be reached.
        """
        try:
            response = await self._reconnecting(self._http.get)("/models")
            return served_context(response.json(), self._model) if response.is_success else None
        except httpx.RequestError as error:
            raise gone(self._url, error) from error
        except FOREIGN:
            return None

    async def generate(self, ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
        """Return one completion.

        Raises:
            GenerationError: the server cannot be reached or refuses.
            ConfigError: it does not return token ids.
        """
        try:
            async with asyncio.timeout(_LONGEST_S):
                response = await self._reconnecting(self._http.post)("/completions", json=self._body(ids, most, stop))
        except TimeoutError as error:
            raise self._endless() from error
        except httpx.RequestError as error:
            raise gone(self._url, error) from error
        if response.status_code != 200:
            raise self._refused(response.status_code, response.text)
        return Generation(self._read(response.text)[0])

    async def stream(self, ids: list[int], most: int, stop: tuple[str, ...], told: Callable[[str], None]) -> Generation:
        """Return one completion; `told` is called with its text, piece by piece, while it is sampled; special tokens included.

        A lost connection is retried only before the first piece: what the caller has seen cannot be taken back.

        Raises:
            GenerationError, ConfigError: see `generate`.
        """
        told_any = False

        def tell(text: str) -> None:
            nonlocal told_any
            told_any = True
            told(text)

        async def attempt() -> list[int]:
            try:
                return await self._pieces({**self._body(ids, most, stop), "stream": True}, most, tell)
            except LOST as error:
                if told_any:
                    raise GenerationError(
                        f"{self._url} broke off in the middle of an answer ({type(error).__name__} {error}): ask again"
                    ) from error
                raise

        try:
            async with asyncio.timeout(_LONGEST_S):
                return Generation(await self._reconnecting(attempt)())
        except TimeoutError as error:
            raise self._endless() from error
        except httpx.RequestError as error:
            raise gone(self._url, error) from error

    async def _pieces(self, body: dict[str, Any], most: int, told: Callable[[str], None]) -> list[int]:
        sampled: list[int] = []
        async with self._http.stream("POST", "/completions", json=body) as response:
            if response.status_code != 200:
                raise self._refused(response.status_code, (await response.aread()).decode(errors="replace"))
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                ids, text = self._read(data)
                sampled += ids
                if len(sampled) > most:
                    raise GenerationError(f"{self._url}/completions samples more than the {most} tokens that were asked for")
                if text:
                    told(text)
        return sampled

    def _body(self, ids: list[int], most: int, stop: tuple[str, ...]) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": ids,
            "max_tokens": most,
            "temperature": self._temperature,
            "top_p": 1.0,  # set explicitly: otherwise a server takes them from the model's generation config
            "top_k": -1,
            "repetition_penalty": 1.0,
            "stop": list(stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # stop strings are matched in the text, where one that is a special token would be missing
            "return_token_ids": True,
        }

    def _read(self, answer: str) -> tuple[list[int], str | None]:
        """Return the token ids and the text of a completion, or of a piece of one."""
        try:
            chosen = json.loads(answer)["choices"][0]
            ids, text = chosen.get("token_ids"), chosen.get("text")
            right = ids is None or all(type(one) is int and one >= 0 for one in ids)
        except FOREIGN as error:
            raise self._refused(200, answer) from error
        if not right:
            raise self._refused(200, answer)
        if ids is None:
            raise ConfigError(f"{self._url} returns no token_ids: serve the model with vLLM 0.10 or newer (vllm serve MODEL)")
        return list(ids), text

    def _endless(self) -> GenerationError:
        return GenerationError(f"{self._url}/completions did not end a generation within {_LONGEST_S:g} s")

    def _refused(self, status: int, text: str) -> GenerationError:
        what = "answered with something that is no completion" if status == 200 else f"refused with HTTP {status}"
        return GenerationError(f"{self._url}/completions {what}: {text[:300]}")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
