"""The application: routers of all protocols behind one guard, one manager of models, health and metrics.

``/health`` answers 200 while requests are served well and 503 while the server drains or an engine has stopped;
``/health/live`` answers 200 as long as the process does. Neither needs a key, and neither names a model. Errors have
the shape of the protocol whose path was asked. There are no pages of documentation, which would load scripts from
elsewhere; ``/openapi.json`` describes the routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tokenmill.core.errors import TokenmillError, did_you_mean
from tokenmill.core.version import __version__
from tokenmill.serve import anthropic, ollama, openai, web
from tokenmill.serve.description import Shape, describe, plain, refusals
from tokenmill.serve.errors import HTTPError, headers_of, status_of, usage_error
from tokenmill.serve.guard import Gate, Guard
from tokenmill.serve.manager import ModelManager
from tokenmill.serve.metrics import CONTENT_TYPE, Metrics
from tokenmill.serve.replies import reply
from tokenmill.serve.settings import ServerSettings
from tokenmill.store import ModelFiles, Store

# Which protocol's errors a path gets; the first prefix that fits
PROTOCOLS: tuple[tuple[str, Any], ...] = (("/v1/messages", anthropic), ("/api/", ollama), ("", openai))


class Live(Shape):
    live: Literal[True]


class Health(Live):
    ready: bool
    faults: list[str]


def create_app(
    settings: ServerSettings | None = None, store: Store | None = None, models: Sequence[ModelFiles] = ()
) -> FastAPI:
    """The server as an ASGI application. ``models`` are loaded when it starts and kept; others when they are asked for.

    ``app.state`` has ``settings``, ``manager``, ``metrics`` and ``gate``.
    """
    settings, gate = settings or ServerSettings(), Gate()
    metrics = Metrics()
    manager = ModelManager(store or Store(), settings, models=models, observer=metrics.observer)
    metrics.watch(manager.loaded)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for name in manager.given:
            await manager.open(name)
        try:
            yield
        finally:
            await manager.close()

    app = FastAPI(
        title="tokenmill", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.settings, app.state.manager, app.state.metrics, app.state.gate = settings, manager, metrics, gate
    app.add_middleware(Guard, settings=settings, gate=gate, manager=manager, metrics=metrics, refuse=refusal)
    if settings.cors_origins:  # outside of the guard: a browser asks whether it may before it sends a key
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_exception_handler(TokenmillError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    _add_health(app)
    app.include_router(web.router)
    for _, protocol in PROTOCOLS:
        app.include_router(protocol.router)
    describe(app, bool(settings.api_keys))
    return app


def refusal(path: str, error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the protocol of `path` writes it, with its status and headers."""
    protocol = next(protocol for prefix, protocol in PROTOCOLS if path.startswith(prefix))
    return reply(protocol.error_body(error), status_of(error), {**headers_of(error), **(headers or {})})


def _on_error(request: Request, error: Exception) -> Response:
    headers = error.headers if isinstance(error, HTTPException) else None  # a 405 says what is allowed
    if isinstance(error, RequestValidationError):
        error = usage_error(error)
    elif isinstance(error, HTTPException):
        error = HTTPError(error.status_code, _no_route(request, error) or str(error.detail))
    return refusal(request.url.path, error, headers)


def _no_route(request: Request, error: HTTPException) -> str | None:
    """What a caller of a route that is not there should know, such as one whose base URL has a /v1 too few or many."""
    asked = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        return f"there is no {asked} here; it takes {(error.headers or {}).get('Allow', 'another method')}"
    if error.status_code != 404 or "route" in request.scope:
        return None
    known = request.app.openapi()["paths"]  # made once
    return f"there is no {asked} here{did_you_mean(request.url.path[:100], known)}"


def _add_health(app: FastAPI) -> None:
    state = app.state

    @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> Response:
        faults = state.manager.faults() + (["shutting down"] if state.gate.draining else [])
        return reply({"live": True, "ready": not faults, "faults": faults}, 503 if faults else 200)

    @app.get("/health/live", responses={200: {"model": Live}})
    async def live() -> Response:
        return reply({"live": True})

    @app.get(
        "/metrics",
        response_class=Response,
        responses=plain("text/plain", "Prometheus' text format.") | refusals(openai.shapes.Error),
    )
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)
