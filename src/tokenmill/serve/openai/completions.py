"""``POST /v1/completions``: texts continued as they stand.

Prompts are texts or token ids, one or several. ``best_of`` makes more answers than are given out and keeps the most
likely (highest mean log-probability of a token). ``echo`` with ``logprobs`` scores the prompt too, as lm-eval asks for
it with ``max_tokens`` 0 or 1. Refused: streaming of a ``best_of`` that is larger than ``n``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenmill.engine.request import Logprobs
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Choice, Completion
from tokenmill.serve.description import whole_or_streamed
from tokenmill.serve.errors import FieldError, UnavailableError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.schemas import MAX_PROMPTS, CompletionRequest
from tokenmill.serve.replies import SSE, reply
from tokenmill.serve.worker import Ticket

router = APIRouter()
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post(
    "/v1/completions",
    responses=whole_or_streamed(shapes.TextCompletion, SSE, "text_completion objects, then [DONE]"),
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue texts."""
    n = body.n or 1
    _check(body, n)
    worker = await wire.open_worker(request, body.model)
    llm = worker.llm
    prompts = await asyncio.to_thread(_prompt_ids, llm, body)
    more: dict[str, Any] = {"logprobs": body.logprobs, "prompt_logprobs": body.logprobs if body.echo else None}
    if body.max_tokens is None:
        more["max_tokens"] = (
            DEFAULT_MAX_TOKENS if llm.default_params.max_tokens is None else llm.default_params.max_tokens
        )
    params = wire.sampling(body, llm.default_params, **more)
    asked = _drawn(params, body, n)
    format = body.response_format.format if body.response_format else None
    ticket = await wire.submit(request, worker, prompts, asked, format, body)
    head = {"id": wire.new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": body.model}
    echoes, named = _echoes(llm, body), bool(body.return_tokens_as_token_ids)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(ticket, llm, asked, head, echoes, prompts, include_usage, named)
        return wire.stream(request, ticket, chunks)
    done = await wire.finished(request, ticket)
    choices = [
        _choice(llm, params, choice, number * n + place, echoes[number], _scored(completion, prompts[number]), named)
        for number, completion in enumerate(done)
        for place, choice in enumerate(_best(completion, n))
    ]
    return reply({**head, "choices": choices, "usage": wire.usage_of(done)})


def _check(body: CompletionRequest, n: int) -> None:
    if body.best_of is not None and body.best_of < n:
        raise FieldError("best_of", f"must be at least n, which is {n}")
    if body.stream and (body.best_of or n) > n:
        raise FieldError("best_of", "which answers are best is known at the end only: it cannot be streamed")
    if body.stream_options is not None and not body.stream:
        raise FieldError("stream_options", "needs stream: true")
    if not body.prompt:
        raise FieldError("prompt", "is empty; give at least one token")
    if isinstance(body.prompt, list) and not isinstance(body.prompt[0], int) and len(body.prompt) > MAX_PROMPTS:
        raise FieldError("prompt", f"{len(body.prompt)} prompts; at most {MAX_PROMPTS} are taken")


def _drawn(params: SamplingParams, body: CompletionRequest, n: int) -> SamplingParams:
    """What the engine is asked for: ``best_of`` answers with scores."""
    count = body.best_of or n
    if count == params.n and count == n:
        return params
    return replace(params, n=count, logprobs=0 if params.logprobs is None and count > n else params.logprobs)


def _prompt_ids(llm: LLM, body: CompletionRequest) -> list[list[int]]:
    return [llm.prompt_ids(one) if isinstance(one, str) else one for one in wire.each(body.prompt)]


def _echoes(llm: LLM, body: CompletionRequest) -> list[str]:
    """What each prompt's answers begin with."""
    if not body.echo:
        return [""] * len(wire.each(body.prompt))
    return [one if isinstance(one, str) else llm.tokenizer.decode(one) for one in wire.each(body.prompt)]


def _best(completion: Completion, n: int) -> Sequence[Choice]:
    if len(completion.choices) == n:
        return completion.choices

    def mean(choice: Choice) -> float:
        scores = choice.logprobs or []
        return sum(score.logprob for score in scores) / len(scores) if scores else float("-inf")

    return sorted(completion.choices, key=mean, reverse=True)[:n]


Scored = list[tuple[int, Logprobs | None]]
"""Tokens with their scores, which the first of a prompt has not."""


def _scored(completion: Completion, prompt: list[int]) -> Scored:
    return list(zip(prompt, completion.prompt_logprobs or (), strict=False))


def _choice(
    llm: LLM, params: SamplingParams, choice: Choice, index: int, echo: str, prompt: Scored, named: bool
) -> dict[str, Any]:
    reason = str(choice.finish_reason)
    logprobs = None
    if params.logprobs is not None:
        said = _said(llm, params, choice.logprobs, reason)
        logprobs = _logprobs(llm, params, [*prompt, *((score.token_id, score) for score in said)], 0, named)
    return {"index": index, "text": echo + choice.text, "logprobs": logprobs, "finish_reason": reason}


def _said(llm: LLM, params: SamplingParams, logprobs: Sequence[Logprobs] | None, reason: str | None) -> list[Logprobs]:
    """Scores of what was written. Behind a scored prompt the token that ends the answer has its place too, as in vLLM:
    lm-eval takes off the last one, and would otherwise take it from the prompt."""
    return list(logprobs or ()) if params.prompt_logprobs is not None else wire.said(llm, params, logprobs, reason)


def _logprobs(llm: LLM, params: SamplingParams, scored: Scored, offset: int, named: bool) -> dict[str, Any]:
    """OpenAI's older shape. The chosen token is among the top ones even where it is none of the most likely.
    ``named``: tokens are called by their ids."""

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if named else wire.token_text(llm, token_id)

    tokens = [wire.token_text(llm, token_id) for token_id, _ in scored]
    tops = [
        None
        if score is None
        else {name(one): wire.floor(value) for one, value in reversed(score.top)}
        | {name(token_id): wire.floor(score.logprob)}
        for token_id, score in scored
    ]
    return {
        "tokens": [name(token_id) for token_id, _ in scored],
        "token_logprobs": [None if score is None else wire.floor(score.logprob) for _, score in scored],
        "top_logprobs": tops if params.logprobs else None,
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else [],
    }


async def _chunks(
    ticket: Ticket,
    llm: LLM,
    params: SamplingParams,
    head: dict[str, Any],
    echoes: list[str],
    prompts: list[list[int]],
    include_usage: bool,
    named: bool,
) -> AsyncIterator[dict[str, Any]]:
    waiting = {number * params.n + sample: echo for number, echo in enumerate(echoes) for sample in range(params.n)}
    offsets = dict.fromkeys(waiting, 0)
    written = cached = 0
    more = {"usage": None} if include_usage else {}
    async for piece in ticket:
        if piece.finish_reason in ("abort", "error"):
            raise piece.error or UnavailableError("the server ended this request")
        index, reason = piece.index, piece.finish_reason
        written += len(piece.token_ids)
        if piece.stats is not None and index % params.n == 0:
            cached += piece.stats.cached_tokens
        text, waiting[index] = waiting[index] + piece.text, ""
        logprobs = None
        scored: Scored = list(zip(prompts[index // params.n], piece.prompt_logprobs, strict=False))
        if scored := [*scored, *((one.token_id, one) for one in _said(llm, params, piece.logprobs, reason))]:
            logprobs = _logprobs(llm, params, scored, offsets[index], named)
            offsets[index] += sum(len(wire.token_text(llm, token_id)) for token_id, _ in scored)
        if text or logprobs or reason:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            yield {**head, "choices": [choice], **more}
    if include_usage:
        yield {**head, "choices": [], "usage": wire.usage(sum(map(len, prompts)), written, cached)}
