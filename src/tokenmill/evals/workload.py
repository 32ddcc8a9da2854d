"""What a measured server is asked: prompts of given or drawn lengths, and when each is sent. All of it by one seed.

``fixed``: every prompt and answer has the given length. ``sharegpt``: lengths as in conversations people shared, drawn
from two log-normal distributions whose means are those of the ShareGPT data in Kwon et al. 2023 (PagedAttention, figure
11: 161.31 tokens in, 337.99 out). The paper gives no spread; ours, 1.6 and 0.9, are a choice that makes half of the
prompts shorter than 45 tokens and half of the answers shorter than 225. ``prefix``: prompts of the fixed length
whose beginning is the same in all, as a system prompt is.

Prompts are random token ids (no two begin alike unless they shall), or words for servers that take text only.
Arrivals are a Poisson process, as vLLM's benchmark makes them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tokenmill.core.errors import UsageError

DATASETS = ("fixed", "sharegpt", "prefix")
SHAREGPT_MEANS = (161.31, 337.99)
SHAREGPT_SIGMAS = (1.6, 0.9)
SHORTEST = 4  # tokens; vLLM's sampling leaves out shorter ones too
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "life", "child", "world", "school", "state", "group")


@dataclass(frozen=True)
class Ask:
    """One request: its prompt (``token_ids``, or ``text`` of as many words), how much it may write, when it is sent."""

    token_ids: tuple[int, ...]
    output_len: int
    at: float
    """Seconds after the start."""

    @property
    def text(self) -> str:
        """About as many tokens as there are ids: common words are one token each for most tokenizers."""
        return " ".join(WORDS[token_id % len(WORDS)] for token_id in self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A mix of requests. ``max_len``: prompt and answer together never take more (0: no limit)."""

    dataset: str = "fixed"
    num_prompts: int = 100
    input_len: int = 128
    output_len: int = 64
    prefix_len: int = 0
    """How many tokens all prompts have in common, of ``input_len``."""
    max_len: int = 0
    vocab_size: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise UsageError(f"there is no dataset {self.dataset!r}; use {', '.join(DATASETS)}")
        if min(self.num_prompts, self.input_len, self.output_len) < 1 or self.vocab_size < 2:
            raise UsageError("prompts, their lengths and the answers' are 1 at least, the vocabulary 2")
        if (self.prefix_len > 0) != (self.dataset == "prefix"):
            raise UsageError("--prefix-len goes with --dataset prefix, and is needed there")
        if self.prefix_len >= self.input_len and self.dataset == "prefix":
            raise UsageError(f"a prefix of {self.prefix_len} leaves nothing of its own to a prompt of {self.input_len}")
        if self.max_len and self.dataset != "sharegpt" and self.input_len + self.output_len > self.max_len:
            raise UsageError(f"{self.input_len} + {self.output_len} tokens do not fit the context of {self.max_len}")
        if self.max_len and self.max_len < 2 * SHORTEST:
            raise UsageError(f"a context of {self.max_len} tokens is too short to measure with")

    def asks(self, request_rate: float, burstiness: float = 1.0) -> list[Ask]:
        """The requests in the order of their sending. The same prompts whatever the rate."""
        draw = random.Random(self.seed)
        prefix = self._ids(draw, self.prefix_len)
        times = arrivals(self.num_prompts, request_rate, burstiness, self.seed)
        asks = []
        for at in times:
            prompt_len, output_len = self._lengths(draw)
            own = self._ids(draw, prompt_len - len(prefix))
            asks.append(Ask((*prefix, *own), output_len, at))
        return asks

    def _ids(self, draw: random.Random, count: int) -> tuple[int, ...]:
        low = min(100, self.vocab_size // 2)  # the first ids are often control tokens
        return tuple(draw.randrange(low, self.vocab_size) for _ in range(count))

    def _lengths(self, draw: random.Random) -> tuple[int, int]:
        if self.dataset != "sharegpt":
            return self.input_len, self.output_len
        room = self.max_len or 2048
        while True:  # drawn anew rather than cut, as vLLM's sampling leaves out what does not fit
            pair = [
                max(1, round(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))
                for mean, sigma in zip(SHAREGPT_MEANS, SHAREGPT_SIGMAS, strict=True)
            ]
            if min(pair) >= SHORTEST and sum(pair) <= room:
                return pair[0], pair[1]


def arrivals(count: int, request_rate: float, burstiness: float, seed: int) -> list[float]:
    """When requests are sent: all at once for an infinite rate, else by gamma-distributed gaps with mean ``1 / rate``.

    ``burstiness`` 1 is a Poisson process; less is more bursty, more is more even.
    """
    if not (request_rate > 0 and burstiness > 0):
        raise UsageError("a request rate and a burstiness are more than 0; inf sends all at once")
    if math.isinf(request_rate):
        return [0.0] * count
    draw = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += draw.gammavariate(burstiness, 1 / (request_rate * burstiness))
    return times
