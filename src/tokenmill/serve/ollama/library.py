"""What models there are, what they are and which are in memory: ``/api/tags``, ``/api/ps``, ``/api/show``,
``/api/copy``, ``/api/delete``.

Names only, never paths of this machine, neither taken nor told: the Modelfile that show gives starts from the model's
name. Removing and copying change the store, so they are for callers who may (see ``access``).
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.models.describe import Description, describe
from tokenmill.serve.description import Responses
from tokenmill.serve.manager import ModelManager
from tokenmill.serve.ollama import fields, shapes
from tokenmill.serve.ollama.access import check_may_change
from tokenmill.serve.prompting import capabilities
from tokenmill.serve.replies import reply
from tokenmill.store import ModelFiles, Store
from tokenmill.store.modelfile import Modelfile, write_modelfile

router = APIRouter()
Json = dict[str, Any]
_log = get_logger(__name__)
_FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
_TAGS: Responses = {200: {"model": shapes.Tags}}
MAX_LISTED = 100  # entries of a list in model_info; a vocabulary has hundreds of thousands


@router.head("/api/tags", responses=_TAGS)
@router.get("/api/tags", responses=_TAGS)
async def tags(request: Request) -> Response:
    """The models that can be asked for: those the server was started with, then the store's, newest first."""
    return reply({"models": await asyncio.to_thread(_tags, request.app.state.manager)})


@router.get("/api/ps", responses={200: {"model": shapes.Ps}})
async def ps(request: Request) -> Response:
    """The models in memory."""
    models = []
    for one in request.app.state.manager.loaded():
        device = one.worker.llm.model.device.type
        models.append(
            {
                "name": one.name,
                "model": one.name,
                "size": one.size,
                "digest": one.digest,
                "details": _details(one.description),
                "expires_at": (one.expires_at or _FOREVER).isoformat(),
                "size_vram": 0 if device == "cpu" else one.size,
                "context_length": one.context_length,
            }
        )
    return reply({"models": models})


@router.post("/api/show", responses={200: {"model": shapes.Shown}})
async def show(request: Request, body: fields.Show) -> Response:
    """Everything about one model; with ``verbose``, long lists of its metadata in full, and its tensors."""
    return reply(await asyncio.to_thread(_show, request.app.state.manager, body))


@router.post("/api/copy", response_class=Response)
async def copy(request: Request, body: fields.Copy) -> Response:
    """Give a model another name."""
    check_may_change(request)
    store: Store = request.app.state.manager.store
    await asyncio.to_thread(store.resolve, body.source, paths=False)
    await asyncio.to_thread(store.copy, body.source, body.destination)
    return Response()


@router.delete("/api/delete", response_class=Response)
async def delete(request: Request, body: fields.Named) -> Response:
    """Remove a model from the store, and from memory."""
    check_may_change(request)
    store: Store = request.app.state.manager.store
    files = await asyncio.to_thread(store.resolve, body.model, paths=False)
    if any(one.name == files.name for one in request.app.state.manager.loaded()):
        await request.app.state.manager.unload(body.model)
    await asyncio.to_thread(store.remove, body.model)
    return Response()


def _tags(manager: ModelManager) -> list[Json]:
    models = []
    for files in manager.models():
        try:
            description = describe(files.path)
        except (TokenmillError, OSError) as error:
            _log.warning("%s is left out: %s", files.name, error)
            continue
        models.append(
            {
                "name": files.name,
                "model": files.name,
                "modified_at": files.modified.isoformat(),
                "size": files.size,
                "digest": files.digest,
                "details": _details(description)
                | {
                    "context_length": description.context_length,
                    "embedding_length": description.embedding_length,
                },
                "capabilities": capabilities(_template(files, description)),
            }
        )
    return models


def _show(manager: ModelManager, body: fields.Show) -> Json:
    files = manager.resolve(body.model)
    description = describe(files.path)
    told: Json = {
        "license": "\n".join(files.licenses),
        "modelfile": write_modelfile(_modelfile(files)),
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in _parameter_rows(files)),
        "template": _template(files, description) or "",
        "details": _details(description),
        "model_info": _model_info(description, bool(body.verbose)),
        "capabilities": capabilities(_template(files, description)),
        "modified_at": files.modified.isoformat(),
    }
    if body.verbose:
        told["tensors"] = [{"name": t.name, "type": t.type, "shape": list(t.shape)} for t in description.tensors]
    for name, value in (("system", files.system), ("messages", files.messages), ("requires", files.requires)):
        if value:
            told[name] = value
    return told


def _template(files: ModelFiles, description: Description) -> str | None:
    return files.template if files.template is not None else description.template


def _modelfile(files: ModelFiles) -> Modelfile:
    """From the model's name, which stands for its file and adapters wherever the reader is."""
    return Modelfile(
        base=files.name,
        parameters=files.parameters,
        template=files.template,
        system=files.system,
        licenses=files.licenses,
        messages=files.messages,
        requires=files.requires,
    )


def _parameter_rows(files: ModelFiles) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in files.parameters.items():
        rows += [(name, f'"{one}"' if isinstance(one, str) else str(one)) for one in _as_list(value)]
    return rows


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _details(description: Description) -> Json:
    return {
        "parent_model": "",
        "format": description.format,
        "family": description.architecture,
        "families": [description.architecture],
        "parameter_size": _human_count(description.parameters),
        "quantization_level": description.quantization,
    }


def _human_count(count: int | None) -> str:
    """``1.5B``, ``134.5M``: as Ollama's details have it; empty when unknown."""
    if count is None:
        return ""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.4g}{letter}" if count < 1000 * size else f"{count / size:.0f}{letter}"
    return str(count)


def _model_info(description: Description, verbose: bool) -> Json:
    """A GGUF's metadata, or a checkpoint's configuration under the same kind of keys."""
    info = dict(description.metadata)
    if description.format != "gguf":
        info = {f"{description.architecture}.{name}": value for name, value in info.items()}
        info["general.architecture"] = description.architecture
        for name in ("context_length", "embedding_length"):
            if (value := getattr(description, name)) is not None:
                info[f"{description.architecture}.{name}"] = value
    info["general.parameter_count"] = description.parameters
    return {name: _plain(value, verbose) for name, value in sorted(info.items())}


def _plain(value: Any, verbose: bool) -> Any:
    """JSON's own types; a long list is null unless it was asked for, as in Ollama."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return None if len(value) > MAX_LISTED and not verbose else [_plain(item, verbose) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN
