"""``/api/embed`` and the older ``/api/embeddings``: texts in, vectors out.

A text that is longer than the context is cut at its end, as Ollama promises, unless ``truncate`` is false; then it is
refused. ``dimensions`` keeps the first numbers of each vector and scales them to length one again.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.engine.embed import embed as embed_ids
from tokenmill.llm import LLM
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.ollama import fields, options, shapes
from tokenmill.serve.ollama.answers import nanoseconds
from tokenmill.serve.replies import reply
from tokenmill.serve.worker import Worker

router = APIRouter()
MAX_TEXTS = 2048


@router.post("/api/embed", responses={200: {"model": shapes.Embedded}})
async def embed(request: Request, body: fields.Embed) -> Response:
    """A vector of length one for each text."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > MAX_TEXTS:
        raise UsageError(f"{len(texts)} texts are too many for one request; at most {MAX_TEXTS} are taken")
    started, chosen = time.perf_counter(), options.checked(body.options)
    worker = await request.app.state.manager.open(body.model, body.keep_alive)
    load_s = time.perf_counter() - started
    limit = min(worker.llm.ctx_size, chosen.get("num_ctx", worker.llm.ctx_size))
    ids = await asyncio.to_thread(_encode, worker.llm, texts, limit, body.truncate is not False)
    vectors = await unless_disconnected(request, _vectors(worker, ids, body.dimensions))
    told = {
        "model": body.model,
        "embeddings": vectors,
        "total_duration": nanoseconds(time.perf_counter() - started),
        "load_duration": nanoseconds(load_s),
        "prompt_eval_count": sum(map(len, ids)),
    }
    return reply(told)


@router.post("/api/embeddings", responses={200: {"model": shapes.Embedding}})
async def embeddings(request: Request, body: fields.Embeddings) -> Response:
    """One text, one vector."""
    chosen = options.checked(body.options)
    worker = await request.app.state.manager.open(body.model, body.keep_alive)
    if not body.prompt:  # loads the model
        return reply({"embedding": []})
    limit = min(worker.llm.ctx_size, chosen.get("num_ctx", worker.llm.ctx_size))
    ids = await asyncio.to_thread(_encode, worker.llm, [body.prompt], limit, True)
    [vector] = await unless_disconnected(request, _vectors(worker, ids, None))
    return reply({"embedding": vector})


def _encode(llm: LLM, texts: list[str], limit: int, truncate: bool) -> list[list[int]]:
    encoded = [llm.tokenizer.encode(text) for text in texts]
    for number, ids in enumerate(encoded):
        if len(ids) > limit and not truncate:
            raise OutOfContextError(f"text {number} has {len(ids)} tokens and the context {limit}; shorten it")
    return [ids[:limit] for ids in encoded]


async def _vectors(worker: Worker, ids: list[list[int]], dimensions: int | None) -> list[list[float]]:
    """One text a call: other requests' tokens come in between."""
    size = worker.llm.model.config.hidden_size
    if dimensions is not None and dimensions > size:
        raise UsageError(f"dimensions {dimensions} are more than the {size} that this model's vectors have")
    found: list[list[float]] = []
    for one in ids:
        vector = (await worker.call(partial(embed_ids, worker.llm.model, [one])))[0]
        if dimensions is not None:
            vector = vector[:dimensions] / vector[:dimensions].norm().clamp_min(1e-12)
        found.append(vector.tolist())
    return found
