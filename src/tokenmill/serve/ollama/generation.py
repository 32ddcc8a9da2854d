"""``/api/generate`` and ``/api/chat``: a request's fields become a prompt and sampling parameters, pieces become JSON.

An empty prompt, or no messages, loads the model; with ``keep_alive: 0`` it unloads it. Refused with the reason: images,
``suffix`` where the template cannot fill in the middle, tools and thinking where the template knows none.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.errors import UsageError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Format
from tokenmill.serve.description import whole_or_streamed
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.ollama import fields, options, shapes
from tokenmill.serve.ollama.answers import Answer, Chunk, lines, now
from tokenmill.serve.prompting import capabilities, chat_ids, template_of
from tokenmill.serve.reading import AnswerReader
from tokenmill.serve.replies import NDJSON, json_text, ndjson, reply
from tokenmill.serve.tools import ChoiceReader, tool_use
from tokenmill.serve.worker import Worker
from tokenmill.text.go_template import GoTemplate

router = APIRouter()
_LINES = "Lines of JSON, of the same shape; the last has the reason and measurements."


@router.post("/api/generate", responses=whole_or_streamed(shapes.Generated, NDJSON, _LINES))
async def generate(request: Request, body: fields.Generate) -> Response:
    """Continue a prompt, put through the model's template unless ``raw``."""
    if body.raw and (body.template is not None or body.system is not None or body.context):
        raise UsageError("raw mode does not support template, system, or context")
    if not body.prompt and not body.suffix:
        return await _load_or_unload(request, body, {"response": ""})
    started, chosen = time.perf_counter(), options.checked(body.options)
    worker = await request.app.state.manager.open(body.model, body.keep_alive)
    load_s = time.perf_counter() - started
    template = None if body.raw else template_of(worker.llm, body.template)
    _check_abilities(body, template, ["insert"] if body.suffix else [])
    ids = await asyncio.to_thread(_prompt_ids, worker.llm, body)
    if body.debug_render_only:
        return _rendered(worker.llm, body, ids)
    params = await _params(worker, body, chosen, len(ids), format := body.format or None)
    # an answer held to a format is that format from its first character on, and one inside a text has no thinking
    reader = AnswerReader(worker.llm, ids, params, template=None if format or body.suffix else template)
    ticket = worker.submit([ids], reader.params, format=format, client=request.state.client)
    context = None if body.raw or body.suffix else ids
    answer = Answer(body, worker.llm, reader, ticket, started, load_s, context)
    return await _respond(request, answer, body.stream)


@router.post("/api/chat", responses=whole_or_streamed(shapes.Chatted, NDJSON, _LINES))
async def chat(request: Request, body: fields.Chat) -> Response:
    """Answer a conversation."""
    if not body.messages:
        return await _load_or_unload(request, body, {"message": {"role": "assistant", "content": ""}})
    started, chosen = time.perf_counter(), options.checked(body.options)
    worker = await request.app.state.manager.open(body.model, body.keep_alive)
    load_s = time.perf_counter() - started
    template = template_of(worker.llm)
    _check_abilities(body, template, ["tools"] if body.tools else [])
    messages = [*worker.llm.files.messages, *(message.for_template() for message in body.messages)]
    tools = [tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in body.tools or []]
    use = tool_use(worker.llm, tools, "auto", parallel=None, format=body.format or None)
    ids = await asyncio.to_thread(chat_ids, worker.llm, messages, use.tools or None, think=body.think)
    if body.debug_render_only:
        return _rendered(worker.llm, body, ids)
    params = use.params(worker.llm, await _params(worker, body, chosen, len(ids), use.format))
    reader = ChoiceReader(worker.llm, ids, params, use)
    ticket = worker.submit([ids], reader.params, format=use.format, client=request.state.client)
    answer = Answer(body, worker.llm, reader, ticket, started, load_s)
    return await _respond(request, answer, body.stream)


def _check_abilities(body: fields.Generation, template: str | None, wanted: list[str]) -> None:
    wanted = [*wanted, *(["thinking"] if body.think else [])]
    for ability in wanted:
        if ability not in capabilities(template):
            raise UsageError(f'"{body.model}" does not support {ability}: its template has no place for it')


def _prompt_ids(llm: LLM, body: fields.Generate) -> list[int]:
    """The ids that ``generate`` continues: as they stand (raw), around a gap (suffix), or as a turn of a chat."""
    prompt = body.prompt or ""
    if body.raw:
        if body.suffix:
            raise UsageError("raw mode has no template, and suffix needs one")
        return llm.tokenizer.encode(prompt)
    if body.suffix:
        source = template_of(llm, body.template) or ""
        system = body.system if body.system is not None else llm.files.system or ""
        rendered = GoTemplate(source).render(system=system, prompt=prompt, suffix=body.suffix)
        return llm.tokenizer.encode(rendered)
    messages: list[dict[str, Any]] = [] if body.context else [*llm.files.messages]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    messages.append({"role": "user", "content": prompt})
    ids = chat_ids(llm, messages, think=body.think, template=body.template)
    if body.context and ids[:1] == [llm.tokenizer.bos_token_id]:
        ids = ids[1:]  # the text began with the context
    return [*(body.context or []), *ids]


async def _params(
    worker: Worker, body: fields.Generation, chosen: dict[str, Any], num_prompt: int, format: Format
) -> SamplingParams:
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs: true")
    params = options.sampling(worker.llm, chosen, (body.top_logprobs or 0) if body.logprobs else None)
    await worker.prepare(format)
    return options.within(params, num_prompt, chosen.get("num_ctx"))


async def _respond(request: Request, answer: Answer, stream: bool | None) -> Response:
    if stream is False:
        return reply(await unless_disconnected(request, answer.whole()))
    return ndjson(lines(answer.chunks()))


async def _load_or_unload(request: Request, body: fields.Generation, empty: Chunk) -> Response:
    if body.keep_alive == 0:
        await request.app.state.manager.unload(body.model)
        reason = "unload"
    else:
        options.checked(body.options)
        await request.app.state.manager.open(body.model, body.keep_alive)
        reason = "load"
    answer = {"model": body.model, "created_at": now(), **empty, "done": True, "done_reason": reason}
    if body.stream is False:
        return reply(answer)
    return Response(json_text(answer) + "\n", media_type=NDJSON)


def _rendered(llm: LLM, body: fields.Generation, ids: list[int]) -> Response:
    """Ollama's ``_debug_render_only``: what the model would be given."""
    text = llm.tokenizer.decode(ids, skip_special_tokens=False)
    return reply({"model": body.model, "created_at": now(), "_debug_info": {"rendered_template": text}})
