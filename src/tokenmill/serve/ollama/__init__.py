"""Ollama's HTTP API, so that its clients and everything built on them work unchanged.

Streams are lines of JSON, errors ``{"error": "…"}``. What differs from Ollama does so on purpose: input is never
dropped in silence, unknown fields are refused, and only callers on this machine or with a key change what models there
are.
Not there: what needs ollama.com (sign-in, cloud models, web search), images.
Source: Ollama's docs/api.md and api/types.go.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from tokenmill.core.version import __version__
from tokenmill.serve.ollama import embedding, generation, library, transfer

__all__ = ["error_body", "router"]

router = APIRouter()
for part in (generation, embedding, library, transfer):
    router.include_router(part.router)


@router.api_route("/", methods=["GET", "HEAD"], response_class=PlainTextResponse)
async def alive() -> str:
    """What Ollama's clients ask to see whether anybody is there."""
    return "Ollama is running"


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> dict[str, str]:
    """This program's version."""
    return {"version": __version__}


def error_body(error: Exception) -> dict[str, str]:
    """An error in Ollama's shape."""
    return {"error": str(error)}
