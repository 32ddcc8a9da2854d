"""What all routes share: sampling parameters, usage, log-probabilities, server-sent events, clients that go away."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from fastapi import Request
from fastapi.responses import Response

from tokenmill.core.errors import TokenmillError
from tokenmill.engine.request import Logprobs
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Completion, Format
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.errors import UnavailableError
from tokenmill.serve.openai.errors import error_body
from tokenmill.serve.openai.schemas import Sampling
from tokenmill.serve.replies import json_text, sse
from tokenmill.serve.worker import Ticket, Worker

_SAME_NAME = (
    "temperature",
    "top_p",
    "n",
    "max_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
)


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


async def open_worker(request: Request, model: str) -> Worker:
    """The worker of a model, loaded if need be. Raises NotFoundError."""
    return await request.app.state.manager.open(model)


def sampling(body: Sampling, defaults: SamplingParams, **more: Any) -> SamplingParams:
    """The model's defaults under what the request says. Stop texts of the model's author stay in force."""
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = max(0, body.top_k)  # vLLM's -1 is off
    if body.stop:
        asked = [body.stop] if isinstance(body.stop, str) else body.stop
        given["stop"] = tuple(dict.fromkeys([*defaults.stop, *asked]))
    if body.stop_token_ids:
        given["stop_token_ids"] = (*defaults.stop_token_ids, *body.stop_token_ids)
    if body.repetition_detection is not None:
        given["repetition_detection"] = body.repetition_detection.rule
    return replace(defaults, **given, **more)


async def submit(
    request: Request, worker: Worker, prompts: list[list[int]], params: SamplingParams, format: Format, body: Sampling
) -> Ticket:
    await worker.prepare(format)
    client = getattr(request.state, "client", "")
    return worker.submit(
        prompts, params, format=format, client=client, priority=body.priority, cache_salt=body.cache_salt
    )


async def finished(request: Request, ticket: Ticket) -> list[Completion]:
    """Wait for an answer as long as somebody wants it. The error of any part is raised."""
    try:
        completions = await unless_disconnected(request, ticket.complete())
    finally:
        ticket.cancel()
    for choice in (choice for completion in completions for choice in completion.choices):
        if choice.finish_reason in ("abort", "error"):
            raise choice.error or UnavailableError("the server ended this request")
    return completions


def each(given: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """A prompt or several, each as text or token ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]
    return cast("list[str | list[int]]", given)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def usage_of(completions: Iterable[Completion]) -> dict[str, Any]:
    """Over all answers; a prompt counts once, however many answers it got."""
    done = list(completions)
    written = sum(len(choice.token_ids) for one in done for choice in one.choices)
    return usage(sum(one.prompt_tokens for one in done), written, sum(one.stats.cached_tokens for one in done))


def said(llm: LLM, params: SamplingParams, logprobs: Sequence[Logprobs] | None, reason: str | None) -> list[Logprobs]:
    """The scores without that of a token that only ended the answer: its text is not there either."""
    shown = list(logprobs or ())
    ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else llm.tokenizer.eos_token_ids)
    return shown[:-1] if reason == "stop" and shown and shown[-1].token_id in ends else shown


def token_text(llm: LLM, token_id: int) -> str:
    """One token as text; bytes that are no UTF-8 by themselves become U+FFFD."""
    return llm.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def chat_logprobs(llm: LLM, scores: Sequence[Logprobs]) -> dict[str, Any]:
    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        raw = llm.tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": floor(logprob), "bytes": list(raw)}

    content = [
        shown(score.token_id, score.logprob) | {"top_logprobs": [shown(*top) for top in score.top]} for score in scores
    ]
    return {"content": content, "refusal": None}


def floor(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI writes -9999 for what cannot be."""
    return max(logprob, -9999.0)


def event(data: Mapping[str, Any] | str, name: str | None = None) -> str:
    text = data if isinstance(data, str) else json_text(data)
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


def stream(request: Request, ticket: Ticket, chunks: AsyncIterator[Mapping[str, Any]]) -> Response:
    """Chunks as server-sent events up to ``[DONE]``. A failure becomes an event; a client that leaves ends the work."""

    async def events() -> AsyncGenerator[str]:
        try:
            async for chunk in chunks:
                yield event(chunk)
        except TokenmillError as error:
            yield event(error_body(error))
        finally:
            ticket.cancel()
        yield event("[DONE]")

    return sse(events(), request.app.state.settings.ping_s)
