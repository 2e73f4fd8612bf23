"""Ask a served model one question, with search: ``SearchAgent(model_url, retriever_url).answer("Who …?")``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

from research_rl.codec import load_codec
from research_rl.errors import GenerationError
from research_rl.inference.context import Fitting
from research_rl.inference.openai_server import CompletionsServer
from research_rl.inference.protocol import choose_protocol
from research_rl.methods.base import Method
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.rollout import Generation, rollout
from research_rl.tools.base import Toolbox
from research_rl.types import Budget, Passage, ToolCall, ToolCalls, Trajectory


@dataclass(frozen=True)
class Answered:
    """The answer (None if the model gave none), the queries answered, the passages it was shown, the whole trajectory, and its budget.

    `budget` is the agent's, or a smaller one if the context of the model's server is too short for it.
    """

    answer: str | None
    searches: list[str]
    passages: list[Passage]
    trajectory: Trajectory
    budget: Budget


@dataclass(frozen=True)
class Event:
    """An event while a question is answered: `text` (the model wrote it), `search` (a query), or `found` (the passages for it)."""

    kind: Literal["text", "search", "found"]
    text: str = ""
    passages: tuple[Passage, ...] = ()


Told = Callable[[Event], None]


class SearchAgent:
    """A model behind an OpenAI-compatible server that returns token ids, and a retrieval service, under one method's protocol."""

    def __init__(
        self, model_url: str, retriever_url: str, *, model: str | None = None, tokenizer: str | None = None,
        method: str | Method | None = None, method_options: dict[str, Any] | None = None, temperature: float = 0.0,
        bos: bool | None = None, chat_template_kwargs: dict[str, Any] | None = None, **limits: int | None,
    ) -> None:  # fmt: skip  # many parameters
        """`model_url` ends in /v1. `model` defaults to the first one that the server names, `tokenizer` (directory or hub id) to the model.

        Without `method`, the model's manifest says how it was trained to search. `bos` and `chat_template_kwargs` (see `HFCodec`) override
        the manifest's. `limits` are fields of `Budget`, for example top_k=3. Prompt and response together must fit in the server's context:
        if that makes a budget smaller, it is logged once.

        Raises:
            ConfigError: there is neither method nor manifest, or an option or limit is unknown.
            GenerationError: `model` is not given, and the server does not answer.
            MissingExtraError: transformers is not installed.
        """
        self._model_url, self._temperature = model_url, temperature
        self._model = model or first_model(model_url)
        directory = tokenizer or self._model
        protocol = choose_protocol(method, method_options or {}, Path(directory), limits, bos, chat_template_kwargs)
        self.method, self.budget = protocol.method, protocol.budget
        self._codec = load_codec(directory, bos=protocol.bos, chat_template_kwargs=protocol.chat_template_kwargs)
        self.method.check_template(self._codec)
        self._fitting = Fitting()
        self._retrieval = RetrievalSettings(retriever_url)
        self._open: tuple[CompletionsServer, RetrievalClient] | None = None

    def answer(self, question: str) -> Answered:
        """Return the answer; for code that is not asynchronous.

        Raises:
            RetrievalError, GenerationError: a server is unavailable; or the question's prompt alone fills the model's context.
            ConfigError: the model's server does not return token ids.
            RuntimeError: called while an event loop runs (in a notebook, for example): use ``await agent.aanswer(question)``.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.aanswer(question))
        raise RuntimeError("an event loop is running here (a notebook?): use `await agent.aanswer(question)`")

    async def aanswer(self, question: str, told: Told | None = None) -> Answered:
        """Return the answer. Many calls may run at once; inside ``async with agent:`` they share their connections.

        `told` is called with every event as it happens: the model's text in pieces, without the token that ends its turn.

        Raises:
            RetrievalError, GenerationError, ConfigError: see `answer`.
        """
        if self._open is not None:
            return await self._ask(question, *self._open, told)
        server, client = self._connect()
        try:
            return await self._ask(question, server, client, told)
        finally:
            await server.close()
            await client.close()

    async def _ask(self, question: str, server: CompletionsServer, client: RetrievalClient, told: Told | None) -> Answered:
        tell: Told = told or (lambda event: None)
        ends = [self._codec.decode([token]) for token in self._codec.eos_ids]  # not shown to a reader

        def tell_text(text: str) -> None:
            for end in ends:
                text = text.removesuffix(end)
            if text:
                tell(Event("text", text))

        async def generate(ids: list[int], most: int, stop: tuple[str, ...]) -> Generation:
            if told is None:
                return await server.generate(ids, most, stop)
            return await server.stream(ids, most, stop, tell_text)

        async def search(queries: list[str], top_k: int) -> list[list[Passage]]:
            tell(Event("search", " | ".join(queries)))
            found = await client.search(queries, top_k)
            tell(Event("found", passages=tuple(passage for row in found for passage in row)))
            return found

        prompt = self._codec.encode_prompt(self.method.prompt(question), self.method.prefill)
        budget = self._fitting.fit(self.budget, await server.context(), len(prompt), question)
        toolbox = Toolbox(self.method.tools, client)

        async def call(asked: ToolCall, top_k: int, shown: Sequence[str]) -> list[Passage]:
            tell(Event("search", next(iter(ToolCalls((asked,)).queries), _shown(asked))))
            found = await toolbox(asked, top_k, shown)
            tell(Event("found", passages=tuple(found)))
            return found

        trajectory = await rollout(self.method, self._codec, question, prompt, budget, generate, search, call)
        shown = [passage for turn in trajectory.turns for passage in turn.passages]
        return Answered(self.method.answer(trajectory), trajectory.searches, shown, trajectory, budget)

    def _connect(self) -> tuple[CompletionsServer, RetrievalClient]:
        return CompletionsServer(self._model_url, self._model, self._temperature), RetrievalClient(self._retrieval)

    async def __aenter__(self) -> SearchAgent:
        self._open = self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            (server, client), self._open = self._open, None
            await server.close()
            await client.close()


def _shown(call: ToolCall) -> str:
    return f"{call.name or 'a broken call'} {json.dumps(call.arguments, ensure_ascii=False)}"


def first_model(model_url: str) -> str:
    """Return the name of the first model that a server offers.

    Raises:
        GenerationError: it does not answer, or offers none.
    """
    url = f"{model_url.rstrip('/')}/models"
    try:
        response = httpx.get(url, timeout=10)
        return str(response.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise GenerationError(f"no model's name can be read from {url}: {type(error).__name__} {error}") from error
