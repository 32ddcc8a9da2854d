"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.serve.anthropic import fields, shapes
from tokenmill.serve.anthropic.answers import PING, Answer, server_sent
from tokenmill.serve.anthropic.prompt import prompt_ids, tools_of
from tokenmill.serve.description import refusals, whole_or_streamed
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.replies import SSE, reply, sse
from tokenmill.serve.tools import ChoiceReader

router = APIRouter(responses=refusals(shapes.Error))


@router.post(
    "/v1/messages",
    responses=whole_or_streamed(shapes.Message, SSE, "Events from message_start to message_stop."),
)
async def create(request: Request, body: fields.Create) -> Response:
    """Answer a conversation."""
    worker = await request.app.state.manager.open(body.model)
    use = tools_of(worker.llm, body)
    ids = await asyncio.to_thread(prompt_ids, worker.llm, body, use)
    params = use.params(worker.llm, _params(body, worker.llm.default_params))
    await worker.prepare(use.format)
    reader = ChoiceReader(worker.llm, ids, params, use)
    ticket = worker.submit([ids], reader.params, format=use.format, client=request.state.client)
    answer = Answer(body.model, reader, ticket, len(ids), body.stop_sequences or [])
    if not body.stream:
        return reply(await unless_disconnected(request, answer.whole()))
    return sse(server_sent(answer.events()), request.app.state.settings.ping_s, PING)


@router.post("/v1/messages/count_tokens", responses={200: {"model": shapes.TokenCount}})
async def count_tokens(request: Request, body: fields.Count) -> Response:
    """How many tokens the prompt has, control tokens of the template included."""
    worker = await request.app.state.manager.open(body.model)
    ids = await asyncio.to_thread(prompt_ids, worker.llm, body, tools_of(worker.llm, body))
    return reply({"input_tokens": len(ids)})


def _params(body: fields.Create, defaults: SamplingParams) -> SamplingParams:
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "max_tokens": body.max_tokens}
    stop = tuple(dict.fromkeys([*defaults.stop, *(body.stop_sequences or [])]))
    return replace(defaults, stop=stop, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
