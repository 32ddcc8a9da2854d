"""How many tokens a second the engine reads and writes here, by batch size and length.

Two runs of the same random prompts tell prefill and decoding apart: one that ends with the first token of each answer,
and one of the full length. Prompts are random ids, the prefix cache is off and end-of-text is ignored, so every run
does all of its work. Rates are of the whole batch; of several repetitions the median counts.
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
from typing import Any

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
    _seconds(model, Shape(1, min(16, model.config.max_position - 2), 2), seed)


def measure(model: Decoder, shape: Shape, seed: int = 0) -> Rates:
    """One repetition."""
    first = _seconds(model, Shape(shape.batch, shape.prompt_len, 1), seed)
    whole = _seconds(model, shape, seed)
    decode_s = max(whole - first, 1e-9)
    return Rates(shape.batch * shape.prompt_len / first, shape.batch * (shape.gen_len - 1) / decode_s)


def start(model: Decoder, shape: Shape, seed: int) -> tuple[Engine, list[Request]]:
    """An engine with room for exactly this batch, and its requests, not added yet."""
    draw = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=shape.gen_len, ignore_eos=True)
    vocabulary = range(model.config.vocab_size)
    prompts = [draw.choices(vocabulary, k=shape.prompt_len) for _ in range(shape.batch)]
    blocks = shape.batch * -(-(shape.prompt_len + shape.gen_len) // BLOCK_SIZE)
    engine = Engine(model, num_blocks=blocks, max_running=shape.batch, max_waiting=shape.batch, prefix_caching=False)
    return engine, [Request(prompt, params) for prompt in prompts]


def _seconds(model: Decoder, shape: Shape, seed: int) -> float:
    engine, requests = start(model, shape, seed)
    started = time.perf_counter()
    for _ in engine.run(requests):
        pass
    seconds = time.perf_counter() - started
    if failed := next((request.error for request in requests if request.error is not None), None):
        raise TokenmillError(f"{shape}: {failed}")
    return seconds


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
