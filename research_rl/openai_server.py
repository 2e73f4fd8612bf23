"""`generate` over an OpenAI-compatible server, token in and token out, for the one `rollout()`."""

from __future__ import annotations

from typing import Any

import httpx

from research_rl.errors import ConfigError, GenerationError
from research_rl.rollout import Generation


class CompletionsServer:
    """Talks to `POST /v1/completions` with token ids both ways (vLLM and SGLang can; a server that only speaks text is refused)."""

    def __init__(
        self, base_url: str, model: str, temperature: float = 0.0, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`base_url` ends in /v1; `transport` replaces the network in tests."""
        self._http = httpx.AsyncClient(base_url=base_url.rstrip("/"), timeout=600, transport=transport)
        self._model, self._temperature, self._url = model, temperature, base_url

    async def generate(self, ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
        """Return one completion.

        Raises:
            GenerationError: the server cannot be reached or refuses.
            ConfigError: it does not return token ids.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": most,
            "temperature": self._temperature,
            "top_p": 1.0,  # said outright: a server otherwise takes them from the model's generation config
            "top_k": -1,
            "repetition_penalty": 1.0,
            "stop": list(stop),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
        }
        try:
            response = await self._http.post("/completions", json=body)
        except httpx.TransportError as error:
            raise GenerationError(f"no model server at {self._url}: {type(error).__name__} {error}") from error
        if response.status_code != 200:
            raise GenerationError(f"{self._url}/completions refused with HTTP {response.status_code}: {response.text[:300]}")
        token_ids = response.json()["choices"][0].get("token_ids")
        if token_ids is None:
            raise ConfigError(f"{self._url} returns no token_ids: serve the model with vLLM 0.10 or newer (vllm serve MODEL)")
        return Generation(list(token_ids))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
