"""Latencies of streamed answers, summed up under the names that ``vllm bench serve`` prints.

ttft: to the first token · itl: between one piece of text and the next · tpot: a token past the first, over the whole
answer · e2el: to the end. All in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

PERCENTILES = (50, 90, 95, 99)
METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class Timing:
    """One answer: when its pieces of text came, in seconds after it was asked for, and how many tokens they had."""

    arrivals: tuple[float, ...]
    end: float
    output_tokens: int

    @property
    def ttft(self) -> float:
        return self.arrivals[0] if self.arrivals else self.end

    @property
    def itls(self) -> list[float]:
        """Between pieces; a server may put several tokens into one."""
        return [later - sooner for sooner, later in pairwise(self.arrivals)]

    @property
    def tpot(self) -> float | None:
        """None where there was one token only."""
        return (self.end - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    def milliseconds(self, metric: str) -> float | None:
        """``ttft``, ``tpot`` or ``e2el`` of this answer."""
        seconds = {"ttft": self.ttft, "tpot": self.tpot, "e2el": self.end}[metric]
        return None if seconds is None else 1000 * seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks, as numpy's. ``values`` is not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(timings: Iterable[Timing]) -> dict[str, float | None]:
    """``mean_``, ``median_``, ``std_``, ``pNN_`` of every metric, as ``p99_ttft_ms``; None where nothing was timed."""
    done = list(timings)
    values: dict[str, list[float]] = {"itl": [1000 * gap for timing in done for gap in timing.itls]}
    for metric in ("ttft", "tpot", "e2el"):
        values[metric] = [ms for timing in done if (ms := timing.milliseconds(metric)) is not None]
    figures: dict[str, float | None] = {}
    for metric in METRICS:
        figures |= {f"{name}_{metric}_ms": value for name, value in _figures(values[metric]).items()}
    return figures


def _figures(values: list[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(("mean", "median", "std", *(f"p{p}" for p in PERCENTILES)))
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    known: dict[str, float | None] = {"mean": mean, "median": percentile(values, 50), "std": spread}
    return known | {f"p{p}": percentile(values, p) for p in PERCENTILES}
