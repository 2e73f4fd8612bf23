"""The viewer's page and its API. No request changes anything, and the page sends requests to this server only."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from research_rl.errors import ConfigError, DataError, missing_extra
from research_rl.web import viewer_store as store
from research_rl.web.page import render
from research_rl.web.viewer_cache import Cache

try:
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "fastapi", "view") from error

TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "/": ("viewer.html", "text/html"),
    "/viewer.js": ("viewer.js", "text/javascript"),
    "/viewer.css": ("viewer.css", "text/css"),
}
POLL_S = 2.0  # seconds between two readings of the runs
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Json(JSONResponse):
    """JSON in ASCII, because half a surrogate pair in a trajectory has an escape, but no form in UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def create_viewer(caches: Sequence[Cache], hosts: Sequence[str] | None = None) -> FastAPI:
    """Return the application over one or several runs, which it keeps reading while they grow.

    `hosts`: the host names that it accepts in requests, against DNS rebinding; None: any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=_follow, args=(cache, stop), daemon=True) for cache in caches]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join(5)

    app = FastAPI(title="research-rl view", lifespan=lifespan, openapi_url=None, default_response_class=_Json)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(DataError)
    async def refuse(request: Request, error: DataError) -> Response:
        return _Json({"detail": str(error)}, status_code=400)

    for path, (name, kind) in FILES.items():
        app.get(path)(_sender(name, kind))

    def of(run: int) -> Cache:
        if not 0 <= run < len(caches):
            raise HTTPException(404, f"there is no run {run}; there are {len(caches)}")
        return caches[run]

    def found(run: int, key: str) -> dict[str, Any]:
        if (trajectory := store.one(of(run), key)) is None:
            raise HTTPException(404, f"there is no trajectory {key} in run {run}")
        return trajectory

    @app.get("/api/runs")
    def runs() -> Any:
        return _Json([store.state(cache) for cache in caches])

    @app.get("/api/facets")
    def facets(run: int = 0) -> Any:
        return _Json(store.facets(of(run)))

    @app.get("/api/list")
    def listed(request: Request, run: int = 0, offset: int = 0, order: str = "first") -> Any:
        return _Json(store.listed(of(run), request.query_params, max(0, offset), order))

    @app.get("/api/trajectory")
    def trajectory(key: str, run: int = 0) -> Any:
        return _Json(found(run, key))

    @app.get("/api/same")
    def same(key: str, run: int = 0) -> Any:
        question = found(run, key)["question"]
        return _Json(
            [{"run": number, **row} for number, cache in enumerate(caches) for row in store.same_question(cache, question)]
        )

    @app.get("/api/metrics")
    def metrics() -> Any:
        names = sorted({name for cache in caches for name in store.metric_names(cache)})
        return _Json(
            {"names": names, "alarms": [{"run": n, **alarm} for n, cache in enumerate(caches) for alarm in store.alarms(cache)]}
        )

    @app.get("/api/curve")
    def curve(name: str) -> Any:
        curves = [(n, label, points) for n, cache in enumerate(caches) for label, points in store.curve(cache, name).items()]
        return _Json([{"run": n, "source": label, "points": points} for n, label, points in curves])

    @app.get("/export")
    def export(key: str, run: int = 0) -> Any:
        page = render("trajectory.html.j2", found=found(run, key), run=of(run).run.name)
        return HTMLResponse(
            page.encode("utf-8", "replace"), headers={"Content-Disposition": f'attachment; filename="trajectory-{key}.html"'}
        )

    return app


def _sender(name: str, kind: str) -> Any:
    def send() -> Any:
        return Response((TEMPLATES / name).read_bytes(), media_type=kind)

    return send


def _follow(cache: Cache, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            cache.fill(stop)
        except ConfigError as error:  # the run has been removed
            cache.told = str(error)
        except Exception as error:  # the page keeps what has been read, and shows the error
            if cache.told is None:
                print(f"view: {cache.run} cannot be read further: {error!r}", file=sys.stderr, flush=True)
            cache.told = f"cannot be read further: {error}"
        stop.wait(POLL_S)
