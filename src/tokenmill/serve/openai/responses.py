"""``POST /v1/responses``, without state: every request brings its whole conversation, and nothing is kept.

An answer is a list of items, a message or function calls, in the order the model wrote them. Streamed or not, they are
made by the same :class:`Items`; a stream also tells every step of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.core.errors import TokenmillError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.serve.description import whole_or_streamed
from tokenmill.serve.errors import UnavailableError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.chat import arguments
from tokenmill.serve.openai.errors import error_body
from tokenmill.serve.openai.response_items import Items
from tokenmill.serve.openai.responses_schemas import FunctionCall, FunctionCallOutput, InputText, ResponsesRequest
from tokenmill.serve.prompting import chat_ids
from tokenmill.serve.replies import SSE, reply, sse
from tokenmill.serve.tools import ChoiceReader, tool_use
from tokenmill.serve.worker import Ticket

router = APIRouter()
NEUTRAL_SAMPLING = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "top_logprobs": 0}


@router.post(
    "/v1/responses",
    responses=whole_or_streamed(shapes.Response, SSE, "Events from response.created to response.completed."),
)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation of items."""
    worker = await wire.open_worker(request, body.model)
    llm = worker.llm
    choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.name
    format = body.text.format.format if body.text and body.text.format else None
    tools = [tool.nested for tool in body.tools or []]
    use = tool_use(llm, tools, choice, parallel=body.parallel_tool_calls, format=format)
    ids = await asyncio.to_thread(chat_ids, llm, messages_of(body), use.tools or None)
    params = use.params(llm, _params(body, llm.default_params))
    reader = ChoiceReader(llm, ids, params, use)
    await worker.prepare(use.format)
    client = getattr(request.state, "client", "")
    ticket = worker.submit([ids], reader.params, format=use.format, client=client)
    answer = _Response(body, params, reader)
    if body.stream:
        return sse(answer.events(ticket, len(ids)), request.app.state.settings.ping_s)
    [completion] = await wire.finished(request, ticket)
    for _ in answer.items.push(reader.push(completion.text, last=True), last=True):
        pass  # events that nobody listens to
    used = _usage(len(ids), len(completion.token_ids), completion.stats.cached_tokens)
    return reply(answer.body(str(completion.finish_reason), used))


def _params(body: ResponsesRequest, defaults: SamplingParams) -> SamplingParams:
    given = {"temperature": body.temperature, "top_p": body.top_p, "max_tokens": body.max_output_tokens}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(defaults, n=1, **named)


def messages_of(body: ResponsesRequest) -> list[dict[str, Any]]:
    """Items as chat messages; neighbouring function calls belong to one message of the assistant."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    for number, item in enumerate(body.input):
        if isinstance(item, FunctionCall):
            function = {"name": item.name, "arguments": arguments(item.arguments, number)}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionCallOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        else:
            role = item.role.replace("developer", "system")
            messages.append({"role": role, "content": _text(item.content)})
    return messages


def _text(content: list[InputText]) -> str:
    return "".join(part.text for part in content)


def _usage(prompt: int, written: int, cached: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written,
    }


class _Response:
    """One answer on its way: the response object at any moment, and the events that tell of it."""

    def __init__(self, body: ResponsesRequest, params: SamplingParams, reader: ChoiceReader) -> None:
        self.request, self.params, self.reader = body, params, reader
        self.items = Items()
        self.id, self.created = wire.new_id("resp").replace("-", "_"), int(time.time())
        self._sequence = 0

    def body(
        self, reason: str | None, usage: dict[str, Any] | None, error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The response; ``reason`` None while it is being made."""
        asked = self.request
        incomplete = {"reason": "max_output_tokens"} if reason == "length" else None
        status = "failed" if error else "in_progress" if reason is None else "incomplete" if incomplete else "completed"
        dump = asked.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": asked.model,
            "output": self.items.done,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.params.temperature,
            "top_p": self.params.top_p,
            "text": dump.get("text") or {"format": {"type": "text"}},
            "tool_choice": dump.get("tool_choice", "auto"),
            "tools": [{"strict": None, "parameters": None, **tool} for tool in dump.get("tools", [])],
            "truncation": "disabled",
            "metadata": asked.metadata or {},
            "usage": usage,
            **NEUTRAL_SAMPLING,
        }

    async def events(self, ticket: Ticket, num_prompt: int) -> AsyncGenerator[str]:
        """Server-sent events from ``created`` to ``completed``, ``incomplete`` or ``failed``."""
        try:
            yield self._event({"type": "response.created", "response": self.body(None, None)})
            yield self._event({"type": "response.in_progress", "response": self.body(None, None)})
            written = 0
            async for piece in ticket:
                reason = piece.finish_reason
                if reason in ("abort", "error"):
                    raise piece.error or UnavailableError("the server ended this request")
                written += len(piece.token_ids)
                parts = self.reader.push(piece.text, last=reason is not None)
                for event in self.items.push(parts, last=reason is not None):
                    yield self._event(event)
                if reason is not None and piece.stats is not None:
                    used = _usage(num_prompt, written, piece.stats.cached_tokens)
                    kind = "response.incomplete" if reason == "length" else "response.completed"
                    yield self._event({"type": kind, "response": self.body(reason, used)})
        except TokenmillError as error:
            found = error_body(error)["error"]
            failed = {"code": found["code"] or "server_error", "message": found["message"]}
            yield self._event({"type": "response.failed", "response": self.body("error", None, failed)})
        finally:
            ticket.cancel()

    def _event(self, event: dict[str, Any]) -> str:
        numbered = {**event, "sequence_number": self._sequence}
        self._sequence += 1
        return wire.event(numbered, name=event["type"])
