"""``POST /v1/embeddings``: the mean of a text's last hidden states, of length one. Floats, or base64 of float32.

Refused: ``dimensions`` other than the model's own, for vectors that were not trained to be cut lose their meaning.
"""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from tokenmill.core.errors import OutOfContextError
from tokenmill.engine.embed import embed
from tokenmill.llm import LLM
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.errors import FieldError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.schemas import HABITS, MAX_PROMPTS, Strict, TokenId
from tokenmill.serve.replies import reply
from tokenmill.serve.worker import Worker

router = APIRouter()


class EmbeddingRequest(Strict):
    NEUTRAL = HABITS
    model: str = Field(min_length=1, max_length=512)
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


@router.post("/v1/embeddings", responses={200: {"model": shapes.Embeddings}})
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """One vector a text."""
    worker = await wire.open_worker(request, body.model)
    llm = worker.llm
    size = llm.model.config.hidden_size
    if body.dimensions not in (None, size):
        raise FieldError("dimensions", f"{llm.name} makes vectors of {size} numbers; they cannot be cut")
    prompts = await asyncio.to_thread(_prompts, llm, body)
    rows = await unless_disconnected(request, _embedded(worker, prompts))
    data = [
        {"object": "embedding", "index": number, "embedding": row if body.encoding_format == "float" else _base64(row)}
        for number, row in enumerate(rows)
    ]
    tokens = sum(map(len, prompts))
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "data": data, "model": body.model, "usage": used})


async def _embedded(worker: Worker, prompts: list[list[int]]) -> list[list[float]]:
    """A text at a time, so that running answers go on between two of them."""
    rows: list[list[float]] = []
    for ids in prompts:
        vectors = await worker.call(partial(embed, worker.llm.model, [ids]))
        rows.append(vectors[0].tolist())
    return rows


def _prompts(llm: LLM, body: EmbeddingRequest) -> list[list[int]]:
    given = wire.each(body.input)
    if not given:
        raise FieldError("input", "is empty; give at least one text")
    if len(given) > MAX_PROMPTS:
        raise FieldError("input", f"{len(given)} texts; at most {MAX_PROMPTS} are taken")
    prompts = [llm.prompt_ids(one) if isinstance(one, str) else one for one in given]
    vocabulary = llm.model.config.vocab_size
    for number, ids in enumerate(prompts):
        if not ids:
            raise FieldError("input", f"text {number} has no tokens; there is nothing to embed")
        if len(ids) > llm.ctx_size:
            raise OutOfContextError(f"text {number} has {len(ids)} tokens and the context {llm.ctx_size}; shorten it")
        if max(ids) >= vocabulary:
            raise FieldError("input", f"token id {max(ids)} is outside the vocabulary of {vocabulary}")
    return prompts


def _base64(row: list[float]) -> str:
    import numpy as np

    return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()
