"""Chooses the next token of one request from its logits.

Each request has its own generator, so that the same request with the same seed gives the same tokens whatever else is
in the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.engine.request import Logprobs, Request
from tokenmill.ops.sampling import GREEDY_BELOW, apply_bias, apply_penalties, candidates, draw, likeliest, sample


class Sampler:
    """The sampling state of one request: its random generator."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self.request = request
        self.generator = torch.Generator(device)
        if request.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(request.seed % 2**63)

    def __call__(self, logits_V: Tensor) -> tuple[int, Logprobs | None]:
        """``logits_V``: the model's scores in any float dtype. Returns the token and, if asked, log-probabilities.

        Raises TokenmillError where no token is left to draw, or the scores are not numbers.
        """
        request, params = self.request, self.request.params
        logits_V = logits_V.float()
        raw_V = logits_V
        if params.logit_bias:
            logits_V = apply_bias(logits_V, params.logit_bias)
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
            logits_V = apply_penalties(
                logits_V,
                request.prompt,
                request.output,
                repetition=params.repetition_penalty,
                last_n=params.repeat_last_n,
                presence=params.presence_penalty,
                frequency=params.frequency_penalty,
            )
        if len(request.output) < params.min_tokens and request.stop_ids:
            logits_V = logits_V.index_fill(0, _ids(request.stop_ids, logits_V), float("-inf"))
        if request.guide is not None:
            allowed_V = torch.from_numpy(request.guide.mask()).to(logits_V.device)
            logits_V = logits_V.masked_fill(~allowed_V, float("-inf"))
        top = likeliest(logits_V)
        if not math.isfinite(float(logits_V[top])):
            raise _nothing_left(raw_V)
        if params.temperature < GREEDY_BELOW:
            return top, _logprobs(raw_V, top, params.logprobs)
        how = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p", "typical_p")}
        if params.drawn_logprobs and params.logprobs is not None:
            values_C, ids_C = candidates(logits_V, **how)
            log_p_V = torch.log_softmax(values_C, dim=-1)  # one softmax, to draw from and to tell
            if ids_C is not None:
                log_p_V = torch.full_like(logits_V, -math.inf).index_copy(0, ids_C, log_p_V)
            token = draw(log_p_V.exp(), self.generator)
            return token, logprobs_of(log_p_V, token, params.logprobs)
        token = sample(logits_V, **how, generator=self.generator)
        return token, _logprobs(raw_V, token, params.logprobs)


def _nothing_left(raw_V: Tensor) -> TokenmillError:
    if not math.isfinite(float(raw_V.max())):
        return TokenmillError("the model's scores are not finite numbers; a dtype of float32 or bfloat16 may help")
    return UsageError("no token may come next: the grammar, logit_bias and min_tokens exclude each other")


def _ids(ids: frozenset[int], like_V: Tensor) -> Tensor:
    return torch.tensor([i for i in sorted(ids) if i < len(like_V)], device=like_V.device, dtype=torch.long)


def _logprobs(logits_V: Tensor, token: int, top: int | None) -> Logprobs | None:
    """Of the model's own distribution, before bias, penalties and temperature, as vLLM reports it."""
    if top is None:
        return None
    return logprobs_of(torch.log_softmax(logits_V, dim=-1), token, top)


def logprobs_of(log_p_V: Tensor, token: int, top: int) -> Logprobs:
    """What a distribution says of a token, and the ``top`` most likely ones."""
    values, ids = log_p_V.topk(min(top, len(log_p_V)))
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Logprobs(token, float(log_p_V[token]), best)
