"""How long one batch takes in the engine, token by token, without a server: what a single person feels.

Every repetition starts a batch of random prompts at once on an idle engine with an empty cache. Times are taken when a
pass hands its tokens out, so they hold scheduling, the model and sampling, and neither HTTP nor text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tokenmill.evals.latencies import Timing, summary
from tokenmill.evals.throughput import Shape, check_shapes, start
from tokenmill.nn.decoder import Decoder


def latency(
    model: Decoder,
    shapes: Sequence[Shape],
    *,
    repeat: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """For each shape its size and the summary of ``repeat`` batches' Timings, after a warm-up of one batch."""
    check_shapes(model, shapes)
    rows = []
    for done, shape in enumerate(shapes):
        time_batch(model, shape, seed)
        timings = [timing for number in range(repeat) for timing in time_batch(model, shape, seed + number)]
        rows.append({**shape.document(), "repeat": repeat, **summary(timings)})
        if progress is not None:
            progress(done + 1, len(shapes))
    return rows


def time_batch(model: Decoder, shape: Shape, seed: int) -> list[Timing]:
    """One batch, a Timing a sequence."""
    engine, requests = start(model, shape, seed)
    arrivals: dict[int, list[float]] = {id(request): [] for request in requests}
    began = time.perf_counter()
    for step in engine.run(requests):
        arrivals[id(step.request)].append(time.perf_counter() - began)
    return [Timing(tuple(times), times[-1], len(times)) for times in arrivals.values()]
