"""The policy writes: completions of prompts by the paged engine, over the very model that is trained.

There is one model. On torch the engine computes with the trainer's own modules; the native kernels read its matrices in
a layout of theirs, which :meth:`Writer.write` derives anew from whatever was trained since (LoRA: the adapter alone).
Completions of one prompt share its blocks in the cache. Tokens in, tokens out: nothing is decoded and encoded again
between the two, and the log-probabilities are those that the tokens were drawn with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from tokenmill.adapt import virtual_ids
from tokenmill.config.policy import PolicyConfig
from tokenmill.core.errors import TokenmillError
from tokenmill.engine.engine import BLOCK_SIZE, Engine, cache_blocks, cache_dtype_of
from tokenmill.engine.native_pass import BLOCK_SIZE as NATIVE_BLOCK
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.nn.decoder import Decoder
from tokenmill.train.memory import MOST_AT_ONCE


@dataclass(frozen=True)
class Ask:
    """A completion to be written."""

    prompt_ids: Sequence[int]
    seed: int
    max_tokens: int | None = None
    """Without it ``policy.completion_tokens``."""
    tools: Sequence[str] = ()
    """Names of those on offer; for :class:`~tokenmill.align.conversations.Conversations`."""


@dataclass(frozen=True)
class Talk:
    """A completion of several turns: what was said in it, what was called."""

    messages: list[dict[str, Any]]
    """The assistant's turns and the tools' results, in OpenAI's form."""
    last: int
    """Where the last turn begins, in the completion's ids."""
    turns: int
    calls: int
    """That were run, or refused."""
    failures: int
    """Of them, those that raised, crashed, gave no number, or took too long."""
    timed_out: int
    invalid: int
    """Of them, those with nothing to run: no such tool, arguments that do not fit, broken JSON."""
    seconds: float
    """Its share of the time that the rollout waited for tools."""


@dataclass(frozen=True)
class Written:
    """A completion as it was drawn. ``logprobs`` are of each token under the distribution it was drawn from."""

    ids: list[int]
    logprobs: list[float]
    """Of those of ``ids`` that the model drew."""
    finished: bool
    """The model ended it; False where it was cut off."""
    given: list[tuple[int, int]] = field(default_factory=list)
    """Stretches of ``ids``, from and up to, that tools and template wrote; never the last token."""
    talk: Talk | None = None
    """Where there were tools."""

    @property
    def drawn(self) -> list[int]:
        """The ids that the model drew."""
        return [token for token, own in zip(self.ids, own_tokens(len(self.ids), self.given), strict=True) if own]


class Writes(Protocol):
    """What writes completions: the engine alone, or with tools."""

    def write(self, asked: Sequence[Ask]) -> list[Written]:
        """Completions by the weights as they are now, in order."""
        ...


class Writer:
    """The engine over a policy. ``longest``: tokens of the longest prompt with its completion; ``batch``: completions
    that are usually asked for at once."""

    def __init__(
        self, model: Decoder, config: PolicyConfig, eos_token_ids: frozenset[int], *, longest: int, batch: int
    ) -> None:
        self.model, self.config, self.eos_token_ids = model, config, eos_token_ids
        self._virtual = virtual_ids(model)  # a learned prompt or prefix stands before every prompt
        self.longest = min(longest + len(self._virtual), model.config.max_position)
        self.batch = min(batch, MOST_AT_ONCE)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """Made when it is first needed, with the adapters that are on then."""
        if self._engine is None:
            config, block = self.config, max(BLOCK_SIZE, NATIVE_BLOCK)
            cache = cache_dtype_of(config.rollout_cache) or self.model.dtype
            tokens = self.batch * -(-self.longest // block) * block
            with evaluating(self.model):
                self._engine = Engine(
                    self.model,
                    max_length=self.longest,
                    block_size=block,
                    num_blocks=max(cache_blocks(self.model, tokens, block, cache.itemsize), -(-self.longest // block)),
                    max_running=MOST_AT_ONCE,
                    max_waiting=1 << 20,
                    kv_cache_dtype=config.rollout_cache,
                    trained=True,
                    matrices=torch.bfloat16 if config.rollout_dtype == "bfloat16" else None,
                )
        return self._engine

    def write(self, asked: Sequence[Ask], *, refresh: bool = True) -> list[Written]:
        """Completions by the weights as they are now, in order; without ``refresh`` by those of the last call, over the
        cache that it filled. TokenmillError where the model cannot go on (its scores are no numbers)."""
        engine, eos = self.engine, self.eos_token_ids
        requests = [Request([*self._virtual, *ask.prompt_ids], self._how(ask), ask.seed, eos) for ask in asked]
        logprobs: dict[int, list[float]] = {id(request): [] for request in requests}
        with evaluating(self.model):
            if refresh:
                engine.refresh()
            for step in engine.run(requests):
                if step.request.error is not None:
                    raise TokenmillError(f"the policy cannot write: {step.request.error}") from step.request.error
                assert step.logprobs is not None
                logprobs[id(step.request)].append(step.logprobs.logprob)
        return [Written(r.output, logprobs[id(r)], r.finish_reason == "stop") for r in requests]

    def _how(self, ask: Ask) -> SamplingParams:
        tokens = ask.max_tokens or self.config.completion_tokens
        return SamplingParams(temperature=self.config.temperature, max_tokens=tokens, logprobs=0, drawn_logprobs=True)


def own_tokens(count: int, given: Iterable[Sequence[int]]) -> list[bool]:
    """Which of ``count`` tokens the model drew, from the stretches that it was given."""
    own = [True] * count
    for start, end in given:
        own[start:end] = [False] * (end - start)
    return own


def seed_of(seed: int, ordinal: int, number: int, stream: int = 0) -> int:
    """The seed of completion ``number`` to the prompt that is the ``ordinal``-th of the run: the same wherever a run
    was interrupted, with any number of processes."""
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, stream, ordinal, number])
    return int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Without dropout inside the block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
