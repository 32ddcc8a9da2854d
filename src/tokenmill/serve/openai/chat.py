"""``POST /v1/chat/completions``.

A conversation that ends with the assistant's words is continued. Thinking, where the template knows it, comes apart
from the text as ``reasoning_content`` and ``reasoning``; ``reasoning_effort`` is refused where it does not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.version import __version__
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Choice
from tokenmill.serve.description import whole_or_streamed
from tokenmill.serve.errors import FieldError, UnavailableError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.schemas import ChatRequest, Message
from tokenmill.serve.prompting import Thinking, chat_ids, template_of
from tokenmill.serve.reading import Part
from tokenmill.serve.replies import SSE, reply
from tokenmill.serve.tools import ChoiceReader, call_body, tool_use
from tokenmill.serve.worker import Ticket
from tokenmill.text.thinking import writes_thinking

router = APIRouter()
FINGERPRINT = f"tokenmill-{__version__}"


@router.post(
    "/v1/chat/completions",
    responses=whole_or_streamed(shapes.ChatCompletion, SSE, "chat.completion.chunk objects, then [DONE]"),
)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    _check(body)
    worker = await wire.open_worker(request, body.model)
    llm = worker.llm
    choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.function.name
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    format = body.response_format.format if body.response_format else None
    use = tool_use(llm, tools, choice, parallel=body.parallel_tool_calls, format=format)
    think = thinking(llm, body.reasoning_effort)
    messages = [template_message(message, number) for number, message in enumerate(body.messages)]
    ids = await asyncio.to_thread(chat_ids, llm, messages, use.tools or None, think=think)
    params = use.params(llm, chat_params(body, llm.default_params))
    readers = [ChoiceReader(llm, ids, params, use) for _ in range(params.n)]
    ticket = await wire.submit(request, worker, [ids], readers[0].params, use.format, body)
    head = {"id": wire.new_id("chatcmpl"), "created": int(time.time()), "model": body.model}
    head["system_fingerprint"] = FINGERPRINT
    answer = _Answer(llm, params, readers, head)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return wire.stream(request, ticket, answer.chunks(ticket, len(ids), include_usage=include_usage))
    completions = await wire.finished(request, ticket)
    choices = [answer.choice(choice) for choice in completions[0].choices]
    return reply({**head, "object": "chat.completion", "choices": choices, "usage": wire.usage_of(completions)})


def _check(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise FieldError("top_logprobs", "needs logprobs: true")
    if body.stream_options is not None and not body.stream:
        raise FieldError("stream_options", "needs stream: true")
    both = body.max_tokens, body.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise FieldError("max_completion_tokens", "differs from max_tokens, its older name; give one of them")


def chat_params(body: ChatRequest, defaults: SamplingParams) -> SamplingParams:
    more: dict[str, Any] = {}
    if body.max_completion_tokens is not None and body.max_tokens is None:
        more["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        more["logprobs"] = body.top_logprobs or 0
    return wire.sampling(body, defaults, **more)


def thinking(llm: LLM, effort: str | None) -> Thinking:
    """``reasoning_effort`` as templates take it."""
    if effort is None or not writes_thinking(template_of(llm)):
        if effort not in (None, "none"):
            raise FieldError("reasoning_effort", f"{llm.name} does not think before it answers; leave this out")
        return None
    return False if effort == "none" else effort


def template_message(message: Message, number: int) -> dict[str, Any]:
    """As chat templates read it: one text, arguments of calls as an object, ``developer`` as ``system``."""
    if message.content is None and message.role != "assistant":
        raise FieldError(f"messages.{number}.content", "a text is needed")
    content = "".join(part.text for part in message.content or [])
    plain: dict[str, Any] = {"role": message.role.replace("developer", "system"), "content": content}
    reasoning = message.reasoning_content or message.reasoning
    given = {"name": message.name, "tool_call_id": message.tool_call_id, "reasoning_content": reasoning}
    plain |= {key: value for key, value in given.items() if value is not None}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.function.name, "arguments": arguments(call.function.arguments, number)},
                **({"id": call.id} if call.id else {}),
            }
            for call in message.tool_calls
        ]
    return plain


def arguments(text: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FieldError(f"messages.{number}.tool_calls", "arguments must be the text of a JSON object")
    return value


class _Answer:
    """Shapes what comes from the engine, whole or in chunks, with the same readers."""

    def __init__(self, llm: LLM, params: SamplingParams, readers: Sequence[ChoiceReader], head: dict[str, Any]) -> None:
        self.llm, self.params, self.readers, self.head = llm, params, readers, head

    def choice(self, choice: Choice) -> dict[str, Any]:
        reader, reason = self.readers[choice.index], str(choice.finish_reason)
        parts = reader.push(choice.text, last=True)
        text = "".join(part.text for part in parts if part.kind == "text")
        thoughts = "".join(part.text for part in parts if part.kind == "thinking")
        calls = [call_body(part.call) for part in parts if part.call is not None]
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if thoughts:
            message |= {"reasoning_content": thoughts, "reasoning": thoughts}
        if calls:
            message["tool_calls"] = calls
        scores = wire.said(self.llm, self.params, choice.logprobs, reason)
        logprobs = None if self.params.logprobs is None else wire.chat_logprobs(self.llm, scores)
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reader.reason(reason),
        }

    async def chunks(self, ticket: Ticket, num_prompt: int, *, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        begun: set[int] = set()
        written = cached = 0
        more = {"usage": None} if include_usage else {}
        async for piece in ticket:
            if piece.finish_reason in ("abort", "error"):
                raise piece.error or UnavailableError("the server ended this request")
            reader, reason = self.readers[piece.index], piece.finish_reason
            if piece.index not in begun:
                begun.add(piece.index)
                yield self._chunk(piece.index, {"role": "assistant", "content": "", "refusal": None}, **more)
            written += len(piece.token_ids)
            if piece.stats is not None and piece.index == 0:
                cached = piece.stats.cached_tokens
            scores = wire.said(self.llm, self.params, piece.logprobs, reason)
            logprobs = wire.chat_logprobs(self.llm, scores) if scores else None
            before = reader.num_calls
            parts = reader.push(piece.text, last=reason is not None)
            for delta in _deltas(parts, before) or ([{"content": ""}] if logprobs else []):
                yield self._chunk(piece.index, delta, logprobs=logprobs, **more)
                logprobs = None
            if reason is not None:
                yield self._chunk(piece.index, {}, reason=reader.reason(reason), **more)
        if include_usage:
            yield self._body([]) | {"usage": wire.usage(num_prompt, written, cached)}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._body([choice]) | more

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": choices}


def _deltas(parts: Sequence[Part], num_calls: int) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    for part in parts:
        if part.call is not None:
            deltas.append({"tool_calls": [{"index": num_calls, **call_body(part.call)}]})
            num_calls += 1
        elif part.kind == "thinking":
            deltas.append({"reasoning_content": part.text, "reasoning": part.text})
        else:
            deltas.append({"content": part.text})
    return deltas
