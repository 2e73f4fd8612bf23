"""``research-rl chat --web``: the same chat as a web page, to which events are streamed as they happen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from research_rl.errors import GenerationError, RetrievalError, missing_extra
from research_rl.inference.agent import Event, SearchAgent

try:
    from fastapi import FastAPI, Header, HTTPException
    from fastapi.responses import HTMLResponse, StreamingResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "fastapi", "chat") from error

PAGE = Path(__file__).parent / "templates" / "chat.html"
LONGEST = 2_000  # characters of a question


def create_chat(agent: SearchAgent, hosts: Sequence[str] | None = None) -> FastAPI:
    """Return the application: ``GET /`` is the page, ``GET /ask?question=…`` a stream of server-sent events.

    Events are ``text`` {text}, ``search`` {text}, ``found`` {passages: [{id, title, text}]}, and last ``answer`` {answer, searches, stop}
    or ``failed`` {message}. Closing the page ends the rollout. `hosts`: the host names that
    it accepts in requests, against DNS rebinding; None: any. A page of another site cannot ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with agent:
            yield

    app = FastAPI(title="research-rl chat", lifespan=lifespan, openapi_url=None)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.get("/ask")
    async def ask(question: str, sec_fetch_site: Annotated[str, Header()] = "none") -> StreamingResponse:
        if sec_fetch_site not in ("same-origin", "none"):
            raise HTTPException(403, "only this page may ask")
        return StreamingResponse(_events(agent, question[:LONGEST].strip()), media_type="text/event-stream")

    return app


async def _events(agent: SearchAgent, question: str) -> AsyncIterator[str]:
    if not question:
        yield _sse("failed", {"message": "ask a question"})
        return
    waiting: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.create_task(agent.aanswer(question, waiting.put_nowait))
    task.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while (event := await waiting.get()) is not None:
            if event.kind == "found":
                parts = [(passage.id, *passage.contents.partition("\n")) for passage in event.passages]
                yield _sse("found", {"passages": [{"id": i, "title": title, "text": text} for i, title, _, text in parts]})
            else:
                yield _sse(event.kind, {"text": event.text})
        try:
            told = task.result()
        except (RetrievalError, GenerationError) as error:
            yield _sse("failed", {"message": str(error)})
        else:
            yield _sse("answer", {"answer": told.answer, "searches": told.searches, "stop": str(told.trajectory.stop_reason)})
    finally:
        task.cancel()


def _sse(event: str, data: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"
