"""The plain generation loop: a cache a sequence, all sequences of a call in one pass, one token each.

Nothing is clever here, on purpose: this is the twin that the paged engine is tested against, token for token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tokenmill.core.errors import OutOfContextError, TokenmillError, UsageError
from tokenmill.engine.prompt_scores import score_prompt
from tokenmill.engine.repetition import repeats
from tokenmill.engine.request import FinishReason, Request, Step
from tokenmill.engine.sampler import Sampler
from tokenmill.nn.context import Cached, SequenceCache
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.scorer import Scorer

PREFILL_CHUNK = 2048  # tokens of a prompt that go through the model at once: bounds the memory of a long prompt


def generate(model: Decoder, requests: Sequence[Request], max_length: int | None = None) -> Iterator[Step]:
    """Run requests to their end, yielding every new token. Requests are checked before any work is done.

    ``max_length``: context in tokens, prompt and answer together (default: what the model says it can do). A request
    whose grammar or scores cannot go on ends with an ``error``; the others do not notice.
    """
    most = model.config.max_position
    limit = most if max_length is None else max_length
    if not 1 <= limit <= most:
        raise UsageError(f"a context of {limit} tokens is not possible: this model takes 1 to {most}")
    for request in requests:
        check_request(request, model, limit)
    return _run(model, requests, limit)


def check_request(request: Request, model: Decoder, limit: int) -> None:
    if isinstance(model, Scorer):
        raise UsageError(
            "this is a reward model: it scores answers (POST /v1/score, tokenmill eval reward) and writes none"
        )
    vocabulary = model.config.vocab_size
    if not request.prompt:
        raise UsageError("the prompt has no tokens; give at least one")
    if len(request.prompt) + (request.params.max_tokens != 0) > limit:
        raise OutOfContextError(
            f"the prompt has {len(request.prompt)} tokens and the context {limit}; shorten it or raise the context"
        )
    known = vocabulary + (0 if model.prompt is None else model.prompt.count)  # learned positions are ids behind it
    if bad := [i for i in request.prompt if not 0 <= i < known]:
        raise UsageError(f"token ids {bad[:5]} are outside the vocabulary of {vocabulary}")
    if bad := [i for i in request.params.logit_bias if i >= vocabulary]:
        raise UsageError(f"logit_bias names token ids {bad[:5]}, outside the vocabulary of {vocabulary}")


def _hidden(model: Decoder, caches: Sequence[SequenceCache], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """One pass over new tokens of several sequences; the hidden states [T, C] of all of them."""
    context = Cached(caches, [len(ids) for ids in tokens], model.device)
    hidden_TC = model.hidden(torch.tensor([i for ids in tokens for i in ids], device=model.device), context)
    context.advance()
    return hidden_TC


@torch.inference_mode()
def _read(model: Decoder, request: Request, cache: SequenceCache) -> torch.Tensor:
    """The prompt, chunk by chunk, and its scores if it wants any; logits [V] of its last token."""
    for start in range(0, len(request.prompt), PREFILL_CHUNK):
        hidden_TC = _hidden(model, [cache], [request.prompt[start : start + PREFILL_CHUNK]])
        score_prompt(model, request, start, hidden_TC)
    return model.logits(hidden_TC[-1:])[0]


@torch.inference_mode()
def _decode(model: Decoder, caches: Sequence[SequenceCache], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """One more token of each sequence; logits [B, V]."""
    return model.logits(_hidden(model, caches, tokens))


def _run(model: Decoder, requests: Sequence[Request], limit: int) -> Iterator[Step]:
    samplers = {id(r): Sampler(r, model.device) for r in requests}
    caches = {id(r): SequenceCache(model.config.num_layers) for r in requests}
    logits: dict[int, torch.Tensor] = {}
    for request in requests:
        if request.params.max_tokens != 0 or request.unscored is not None:
            logits[id(request)] = _read(model, request, caches[id(request)])
        if request.params.max_tokens == 0:
            request.finish("length")
    running = [r for r in requests if r.finish_reason is None]
    while running:
        for request in running:
            if request.finish_reason is None:  # else its reader has ended it since
                yield next_step(request, samplers[id(request)], logits[id(request)], limit)
        running = [r for r in running if r.finish_reason is None]
        if running:
            rows = _decode(model, [caches[id(r)] for r in running], [r.output[-1:] for r in running])
            logits = {id(r): row for r, row in zip(running, rows, strict=True)}


def next_step(request: Request, sampler: Sampler, logits_V: torch.Tensor, limit: int) -> Step:
    """Draw the next token of one request. What goes wrong is its own affair, and kept there."""
    try:
        token, logprobs = sampler(logits_V)
        if request.guide is not None:
            request.guide.accept(token)
    except Exception as error:
        if not isinstance(error, TokenmillError):
            error = TokenmillError(f"no token could be chosen: {type(error).__name__}: {error}")
        request.error = error
        request.finish("error")
        return Step(request, None, None, request.finish_reason)
    request.output.append(token)
    if (reason := _reason(request, token, limit)) is not None:
        request.finish(reason)
    return Step(request, token, logprobs, request.finish_reason)


def _reason(request: Request, token: int, limit: int) -> FinishReason | None:
    if token in request.stop_ids or (request.guide is not None and request.guide.stopped):
        return "stop"
    if len(request.output) == request.params.max_tokens or len(request.prompt) + len(request.output) >= limit:
        return "length"
    loops = request.params.repetition_detection
    return "repetition" if loops is not None and repeats(request.output, loops) else None
