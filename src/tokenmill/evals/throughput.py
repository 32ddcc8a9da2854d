"""How many tokens a second the engine reads and writes here, by batch size.

Two runs of the same random prompts tell prefill and decoding apart: one that ends with the first token of each answer,
and one of the full length. Prompts are random ids, the prefix cache is off and end-of-text is ignored, so every run
does all of its work. Rates are of the whole batch.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenmill.core.errors import UsageError
from tokenmill.engine.engine import BLOCK_SIZE, Engine
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.nn.decoder import Decoder


@dataclass(frozen=True)
class Throughput:
    batch: int
    prefill_tok_s: float
    """Prompt tokens a second, until every sequence of the batch has its first token."""
    decode_tok_s: float
    """New tokens a second after the first ones."""
    peak_rss_mb: float
    """The most memory this process has held so far."""


def throughput(
    model: Decoder,
    batches: Sequence[int],
    *,
    prompt_len: int = 128,
    gen_len: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Throughput]:
    """Measure each batch size, after one warm-up. UsageError where prompt and answer do not fit the context."""
    if not batches or min(batches) < 1 or prompt_len < 1 or gen_len < 2:
        raise UsageError("batch and prompt-len are 1 at least, gen-len 2, for decoding begins with the second token")
    if prompt_len + gen_len > model.config.max_position:
        raise UsageError(f"{prompt_len} + {gen_len} tokens do not fit the context of {model.config.max_position}")
    _seconds(model, 1, min(prompt_len, 16), 2, seed)
    results = []
    for done, batch in enumerate(batches):
        first = _seconds(model, batch, prompt_len, 1, seed)
        whole = _seconds(model, batch, prompt_len, gen_len, seed)
        decode_s = max(whole - first, 1e-9)
        results.append(Throughput(batch, batch * prompt_len / first, batch * (gen_len - 1) / decode_s, _peak_rss_mb()))
        if progress is not None:
            progress(done + 1, len(batches))
    return results


def _seconds(model: Decoder, batch: int, prompt_len: int, gen_len: int, seed: int) -> float:
    draw = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=gen_len, ignore_eos=True)
    prompts = [[draw.randrange(model.config.vocab_size) for _ in range(prompt_len)] for _ in range(batch)]
    blocks = batch * -(-(prompt_len + gen_len) // BLOCK_SIZE)
    engine = Engine(model, num_blocks=blocks, max_running=batch, max_waiting=batch, prefix_caching=False)
    started = time.perf_counter()
    for _ in engine.run([Request(prompt, params) for prompt in prompts]):
        pass
    return time.perf_counter() - started


def _peak_rss_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
