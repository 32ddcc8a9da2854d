"""How many tokens a second the engine reads and writes here, by batch size and length.

Two runs of the same random prompts: one that ends with the first token of each answer, for prefill, and one of the full
length, in which decoding counts from the step on that gave the last sequence its first token, until one ends. Prompts
are random ids, the prefix cache is off and end-of-text is ignored, so every run does all of its work. Rates are of the
whole batch; of several repetitions the median counts.
"""

from __future__ import annotations

import random
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.engine.engine import BLOCK_SIZE, Engine
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.nn.decoder import Decoder


@dataclass(frozen=True)
class Shape:
    """What is measured: ``batch`` sequences of ``prompt_len`` tokens that are continued by ``gen_len``."""

    batch: int
    prompt_len: int
    gen_len: int

    def document(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.batch} x {self.prompt_len}+{self.gen_len}"


@dataclass(frozen=True)
class Rates:
    """One repetition, in tokens a second of the whole batch."""

    prefill_tok_s: float
    """Prompt tokens, until every sequence of the batch has its first token."""
    decode_tok_s: float
    """New tokens after the first ones."""


class Moment(NamedTuple):
    """Where a run stands after a step."""

    seconds: float
    tokens: int
    begun: int
    """Sequences that have their first token."""
    ended: int


def decode_rate(moments: Sequence[Moment]) -> float:
    """New tokens a second while the whole batch decodes; where the first sequence ends before the last one begins,
    from there to the end."""
    batch = moments[-1].begun
    first = next(moment for moment in moments if moment.begun == batch)
    last = next(moment for moment in moments if moment.ended)
    last = last if last.seconds > first.seconds else moments[-1]
    return (last.tokens - first.tokens) / (last.seconds - first.seconds)


@dataclass(frozen=True)
class Throughput:
    """One shape: the medians of its repetitions, and these."""

    shape: Shape
    runs: tuple[Rates, ...]
    peak_rss_mb: float
    """The most memory this process held while the shape was measured (on systems other than Linux: so far)."""

    @property
    def prefill_tok_s(self) -> float:
        return statistics.median(run.prefill_tok_s for run in self.runs)

    @property
    def decode_tok_s(self) -> float:
        return statistics.median(run.decode_tok_s for run in self.runs)

    def document(self) -> dict[str, Any]:
        """As ``--json`` has it; ``runs`` only where there are several."""
        figures = {**self.shape.document(), "prefill_tok_s": self.prefill_tok_s, "decode_tok_s": self.decode_tok_s}
        figures["peak_rss_mb"] = self.peak_rss_mb
        return figures | ({"runs": [asdict(run) for run in self.runs]} if len(self.runs) > 1 else {})


def check_shapes(model: Decoder, shapes: Sequence[Shape]) -> None:
    """UsageError for shapes that are empty, too short to tell decoding from prefill, or too long for the model."""
    if not shapes or any(shape.batch < 1 or shape.prompt_len < 1 or shape.gen_len < 2 for shape in shapes):
        raise UsageError("batch and prompt-len are 1 at least, gen-len 2, for decoding begins with the second token")
    for shape in shapes:
        if shape.prompt_len + shape.gen_len > model.config.max_position:
            raise UsageError(
                f"{shape.prompt_len} + {shape.gen_len} tokens do not fit the context of {model.config.max_position}"
            )


def warm_up(model: Decoder, seed: int = 0) -> None:
    """A few tokens, so that what is done once is done."""
    _moments(model, Shape(1, min(16, model.config.max_position - 2), 2), seed)


def measure(model: Decoder, shape: Shape, seed: int = 0) -> Rates:
    """One repetition."""
    first = _moments(model, Shape(shape.batch, shape.prompt_len, 1), seed)[-1].seconds
    return Rates(shape.batch * shape.prompt_len / first, decode_rate(_moments(model, shape, seed)))


def start(model: Decoder, shape: Shape, seed: int) -> tuple[Engine, list[Request]]:
    """An engine with room for exactly this batch, and its requests, not added yet."""
    draw = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=shape.gen_len, ignore_eos=True)
    vocabulary = range(model.config.vocab_size)
    prompts = [draw.choices(vocabulary, k=shape.prompt_len) for _ in range(shape.batch)]
    blocks = shape.batch * -(-(shape.prompt_len + shape.gen_len) // BLOCK_SIZE)
    engine = Engine(model, num_blocks=blocks, max_running=shape.batch, max_waiting=shape.batch, prefix_caching=False)
    return engine, [Request(prompt, params) for prompt in prompts]


def _moments(model: Decoder, shape: Shape, seed: int) -> list[Moment]:
    engine, requests = start(model, shape, seed)
    moments: list[Moment] = []
    started = time.perf_counter()
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
        made = [len(request.output) for request in requests]
        ended = sum(request.finish_reason is not None for request in requests)
        moments.append(Moment(time.perf_counter() - started, sum(made), sum(map(bool, made)), ended))
    if failed := next((request.error for request in requests if request.error is not None), None):
        raise TokenmillError(f"{shape}: {failed}")
    return moments


def peak_rss_mb() -> float:
    """The most memory that this process has held since the last :func:`reset_peak`, in 10^6 bytes."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")):
            return int(found[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def reset_peak() -> None:
    """Begin anew with :func:`peak_rss_mb`; without effect where the system does not offer it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
