"""Ollama's ``options`` of one request: over the model's own parameters, checked, none of them lost.

What only chooses placement is accepted without effect; what would change answers in a way that is not computed here,
and what nobody knows, is refused by name. ``num_ctx`` bounds prompt and answer of this request: the paged cache needs
no reservation, so a number beyond what the model is served with bounds nothing further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenmill.core.errors import OutOfContextError, UsageError, did_you_mean
from tokenmill.engine.sampling_params import SamplingParams, as_ollama
from tokenmill.llm import LLM
from tokenmill.store import parameters


def checked(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that have an effect, typed. Raises one UsageError with every problem."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    problems = [
        f"option {name!r:.60} is not supported: {parameters.REFUSED[name]}"
        if name in parameters.REFUSED
        else f"unknown option {name!r:.60}{did_you_mean(name, parameters.all_names())}"
        for name in given
        if name not in parameters.HONOURED and name not in parameters.DROPPED
    ]
    kept, _, wrong = parameters.read_json({name: given[name] for name in given if name in parameters.HONOURED})
    if problems or wrong:
        raise UsageError("; ".join([*problems, *wrong]))
    return kept


def sampling(llm: LLM, options: Mapping[str, Any], logprobs: int | None) -> SamplingParams:
    """The model's own parameters with the checked `options` over them."""
    return replace(as_ollama(llm.default_params, llm.files.parameters, options), logprobs=logprobs)


def within(params: SamplingParams, num_prompt: int, num_ctx: int | None) -> SamplingParams:
    """`params` bounded so that prompt and answer have at most `num_ctx` tokens. Raises OutOfContextError."""
    if num_ctx is None:
        return params
    left = num_ctx - num_prompt
    if left <= 0:
        raise OutOfContextError(
            f"the prompt has {num_prompt} tokens and num_ctx is {num_ctx}; shorten it or raise num_ctx"
        )
    return replace(params, max_tokens=left if params.max_tokens is None else min(left, params.max_tokens))
