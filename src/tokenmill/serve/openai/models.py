"""``GET /v1/models`` and ``/v1/models/{model}``: what can be asked for, each with its context length.

``max_model_len`` is what a prompt and its answer may have together: as loaded, else as the Modelfile or the model says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.errors import TokenmillError
from tokenmill.models.describe import describe
from tokenmill.serve.openai import shapes
from tokenmill.serve.replies import reply
from tokenmill.store import ModelFiles

router = APIRouter()


@router.get("/v1/models", responses={200: {"model": shapes.Models}})
async def models(request: Request) -> Response:
    """All models of the store, and those that the server was started with."""
    manager = request.app.state.manager
    loaded = {model.name: model.context_length for model in manager.loaded()}

    def found() -> list[dict[str, Any]]:
        return [_entry(files, loaded) for files in manager.models()]

    return reply({"object": "list", "data": await asyncio.to_thread(found)})


@router.get("/v1/models/{model:path}", responses={200: {"model": shapes.Model}})
async def model(model: str, request: Request) -> Response:
    """One model, by any name that requests may use."""
    manager = request.app.state.manager
    loaded = {entry.name: entry.context_length for entry in manager.loaded()}
    files = await asyncio.to_thread(manager.resolve, model)
    return reply((await asyncio.to_thread(_entry, files, loaded)) | {"id": model})


def _entry(files: ModelFiles, loaded: dict[str, int]) -> dict[str, Any]:
    length = loaded.get(files.name) or files.parameters.get("num_ctx")
    try:
        length = length or describe(files.path).context_length
    except (TokenmillError, OSError):
        length = None  # a file that cannot be read is still there by name; asking it says what is wrong
    return {
        "id": files.name,
        "object": "model",
        "created": int(files.modified.timestamp()),
        "owned_by": "tokenmill",
        "root": files.name,
        "parent": None,
        "max_model_len": length,
    }
