"""The HTTP application: each path turns one wire format into queries and k, and the answer back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteHTTPException
from uvicorn.config import STARTUP_FAILURE  # exit code of a worker that is not started again

from rag_serving import metrics, wire, wire_v1
from rag_serving.building import COPIED_US, DECODED_US, built
from rag_serving.ending import Ending
from rag_serving.indexes import Indexes
from rag_serving.logs import flush_logs
from rag_serving.operations import Direct, Guard, respond
from rag_serving.page import search_page
from rag_serving.retrievers import open_retriever
from rag_serving.service import Answer, Load, Refused
from rag_serving.settings import Settings
from rag_serving.v1 import V1

log = logging.getLogger("rag_serving")

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Body], Awaitable[Any]]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Problem, "description": description}
    for status, description in {
        400: "A blank query, or k or a page beyond its limits",
        401: "No valid token",
        404: "No such passage, document or index",
        408: "The request took too long to arrive",
        413: "Larger than a limit",
        422: "Not in this format",
        429: "The queue is full; see Retry-After",
        501: "The retriever holds no passages of its own",
        502: "The engine failed",
        503: "The index is loading, or could not be loaded, or the engine hangs",
        504: "The engine hangs",
    }.items()
}


def create_app(
    settings: Settings | None = None,
    load: Load = open_retriever,
    on_failure: Callable[[], None] | None = None,
    ending: Ending | None = None,
) -> FastAPI:
    """Return the application; `load` makes the retriever of each index, in the background: when the server starts, and at each reload.

    `on_failure` is called if loading fails (the command line ends the server then). `ending` ends the process where a thread of an index
    would keep it for ever; None: the process is not ours.
    """
    settings = settings or Settings()
    indexes = Indexes(settings, load)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if ending is not None:
            ending.listen()
        indexes.start()
        loop = asyncio.get_running_loop()
        app.state.reload = lambda: asyncio.run_coroutine_threadsafe(indexes.reload(), loop)
        threading.Thread(target=_watch, args=(indexes, on_failure), daemon=True).start()
        if settings.workers > 1:  # workers share the port: one that is not ready must not accept
            while not indexes.settled and not (ending and ending.told):
                await asyncio.sleep(0.05)
            if indexes.failed:
                if ending is not None:  # another index may hang
                    ending.end_within(ending.grace_s, STARTUP_FAILURE)
                raise RuntimeError("the index could not be loaded")
        yield
        await indexes.stop()
        flush_logs()  # uvicorn may end the process by the signal that it was told to end by
        if ending is None:
            return
        if unfinished := await indexes.unfinished(ending.grace_s):
            ending.leave(unfinished)
        ending.end_after_main(2 * ending.grace_s)  # what is left are threads that read passages, and the interpreter's own end

    app = FastAPI(
        title="rag-serving",
        version="1",
        description=wire.__doc__ or "",
        lifespan=lifespan,
        responses=_PROBLEMS,
        redirect_slashes=False,
    )

    @app.exception_handler(StarletteHTTPException)
    async def _framework(_: Request, error: StarletteHTTPException) -> Response:
        reason = {400: "format", 404: "path", 405: "method"}.get(error.status_code, "http")
        return _Refusal(Refused(error.status_code, reason, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def _parameters(_: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return _Refusal(Refused(422, "format", told))

    @app.exception_handler(Refused)
    async def _refused(_: Request, refused: Refused) -> Response:
        return _Refusal(refused)

    def debug(queries: list[str], k: int) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("k=%d queries=%r", k, queries)

    async def search(queries: list[str], k: int) -> Answer:
        debug(queries, k)
        return await indexes.service().search(queries, k)

    direct: dict[str, Direct] = {}
    # documents the scheme; `Guard` asks for the token
    guarded = [Security(HTTPBearer(auto_error=False))] if settings.tokens else []

    def post(path: str, request_model: type[Body], response_model: Any, tag: str) -> Callable[[Handler[Body]], None]:
        """Register a handler from request model to JSON value.

        FastAPI documents both models, and `Guard` calls the endpoint itself: FastAPI's way from bytes to arguments and back takes longer
        than BM25 over 100,000 passages.
        """
        schema = request_model.model_json_schema()

        def register(handler: Handler[Body]) -> None:
            async def answer(body: bytes) -> bytes:
                try:
                    request = request_model.model_validate_json(body)
                except ValidationError as error:
                    raise Refused(422, "format", _told(error)) from None
                return orjson.dumps(await handler(request))

            async def endpoint(request: Request) -> Response:
                return Response(await answer(await request.body()), media_type="application/json")

            direct[path] = answer
            content = {"application/json": {"schema": schema}}
            app.add_api_route(
                path,
                endpoint,
                methods=["POST"],
                response_model=response_model,
                tags=[tag],
                summary=(request_model.__doc__ or "").strip(),
                operation_id=handler.__name__,
                openapi_extra={"requestBody": {"required": True, "content": content}},
                dependencies=guarded,
            )

        return register

    @post("/search", wire.SearchRequest, wire.Documents | wire.Scored, "ReSearch")
    async def research_search(request: wire.SearchRequest) -> Any:
        hits = (await search([request.query], request.top_n)).hits[0]
        return [wire.documents(hits), wire.scores(hits)] if request.return_score else wire.documents(hits)

    @post("/batch_search", wire.BatchSearchRequest, list[wire.Documents] | wire.ScoredBatch, "ReSearch")
    async def research_batch_search(request: wire.BatchSearchRequest) -> Any:
        results = (await search(request.query, request.top_n)).hits
        found = await built(wire.documents, COPIED_US, results)
        return [found, [wire.scores(hits) for hits in results]] if request.return_score else found

    @post("/queries", wire.QueriesRequest, wire.QueriesResponse, "R1-Searcher")
    async def r1_searcher_queries(request: wire.QueriesRequest) -> Any:
        results = (await search(request.queries, request.k)).hits
        return {"queries": request.queries, "answers": await built(wire.texts, DECODED_US, results)}

    @post("/retrieve", wire.RetrieveRequest, wire.RetrieveResponse | wire.RllmResponse, "Search-R1")
    async def search_r1_retrieve(request: wire.RetrieveRequest) -> Any:
        queries = [request.query] if request.query is not None else request.queries or []
        k = request.topk if request.topk is not None else request.top_k
        results = (await search(queries, 3 if k is None else k)).hits
        if request.query is not None and request.topk is None and request.top_k is not None:
            return {"query": request.query, "results": wire.rllm_hits(results[0])}
        form = wire.scored_documents if request.return_scores else wire.documents
        return {"result": await built(form, COPIED_US, results)}

    ours = {name: V1(service) for name, service in indexes.services.items()}

    @post("/v1/search", wire_v1.SearchRequest, wire_v1.SearchResponse, "v1")
    async def v1_search(request: wire_v1.SearchRequest) -> Any:
        debug(request.queries, request.top_k)
        return await ours[indexes.service(request.index).name].search(request)

    @post("/v1/documents", wire_v1.DocumentsRequest, wire_v1.DocumentsResponse, "v1")
    async def v1_documents(request: wire_v1.DocumentsRequest) -> Any:
        return await ours[indexes.service(request.index).name].documents(request)

    @post("/v1/open", wire_v1.OpenRequest, wire_v1.OpenResponse, "v1")
    async def v1_open(request: wire_v1.OpenRequest) -> Any:
        return await ours[indexes.service(request.index).name].open(request)

    @app.get("/v1/passages/{id:path}", tags=["v1"], response_model=wire_v1.PassageResponse, dependencies=guarded)
    async def v1_passage(id: str, index: str | None = None, metadata: bool = False) -> Response:
        """One passage by its id, percent-encoded; with `metadata=true` what the corpus says of it beside its text."""
        passage = await ours[indexes.service(index).name].passage(id, metadata)
        return Response(orjson.dumps(passage), media_type="application/json")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return search_page(bool(settings.tokens))

    @app.get("/livez", tags=["operations"])
    async def livez() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operations"])
    async def readyz() -> Response:
        """200 once the index is loaded and warm; until then 503 with the stage of loading. Also 503 while its engine hangs, or a file of it
        is damaged.

        Without /indexes/NAME before the path: 200 once all indexes are; the fields beside `indexes` are those of the default one.
        """
        await indexes.look()
        return _json(indexes.readiness(), 200 if indexes.healthy else 503)

    @app.get("/health", tags=["ReSearch"])
    async def health() -> Response:
        """As ReSearch's clients expect it."""
        await indexes.look()
        return _json(indexes.health(), 200 if indexes.healthy else 503)

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse, dependencies=guarded)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    paths = frozenset(str(getattr(route, "path", "")) for route in app.routes)
    app.add_middleware(Guard, settings=settings, paths=paths, direct=direct, indexes=indexes)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return app


def _told(error: ValidationError) -> str:
    """Return what is wrong without the input, which may be large, secret, or no valid Unicode."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems[:5])


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


class _Refusal(Response):
    def __init__(self, refused: Refused) -> None:
        super().__init__(status_code=refused.status)
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(self._refused, send)


def _watch(indexes: Indexes, on_failure: Callable[[], None] | None) -> None:
    while not indexes.settled:
        time.sleep(0.05)
    if indexes.failed and on_failure is not None:
        on_failure()
