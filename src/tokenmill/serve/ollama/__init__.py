"""Ollama's HTTP API, so that its clients and everything built on them work unchanged.

Streams are lines of JSON, errors ``{"error": "…"}``. What differs from Ollama does so on purpose: input is never
dropped in silence, unknown fields are refused, and only callers on this machine or with a key change what models there
are.
Not there: what needs ollama.com (sign-in, cloud models, web search), images.
Source: Ollama's docs/api.md and api/types.go.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from tokenmill.core.version import __version__
from tokenmill.serve.description import Responses, refusals
from tokenmill.serve.ollama import embedding, generation, library, shapes, transfer
from tokenmill.serve.replies import reply

__all__ = ["ALIVE", "error_body", "router"]

ALIVE = "Ollama is running"
"""What ``GET /`` answers to programs: Ollama's clients ask to see whether anybody is there."""
_VERSION: Responses = {200: {"model": shapes.Version}}

router = APIRouter(responses=refusals(shapes.Error))
for part in (generation, embedding, library, transfer):
    router.include_router(part.router)


@router.head("/api/version", responses=_VERSION)
@router.get("/api/version", responses=_VERSION)
async def version() -> Response:
    """This program's version."""
    return reply({"version": __version__})


@router.get("/api/status", responses={200: {"model": shapes.Status}})
async def status() -> Response:
    """Whether models of a cloud can be used. There are none, whatever is set."""
    return reply({"cloud": {"disabled": True, "source": "none"}})


def error_body(error: Exception) -> dict[str, str]:
    """An error in Ollama's shape."""
    return {"error": str(error)}
