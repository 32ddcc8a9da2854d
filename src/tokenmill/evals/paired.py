"""Differences of two models on the same rows: what is certain of them. Numbers in, numbers out.

Rows differ much more from each other than models do on one row, so differences are taken row by row: their mean has a
bootstrap interval (rows drawn anew, with replacement; Efron 1979), and answers that are right or wrong have McNemar's
test in its exact form (1947): of the rows where only one of the two is right, is either favoured more than by a coin?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.core.errors import UsageError

ROUNDS = 10_000
CONFIDENCE = 0.95
_AT_ONCE = 1 << 22
"""Drawn numbers held at a time."""


@dataclass(frozen=True)
class Difference:
    """Second minus first, over the rows that both have."""

    rows: int
    first: float
    second: float
    value: float
    low: float
    high: float
    """Of the interval, at 95 %."""
    p: float | None
    """Of McNemar's test; None where values are not all 0 or 1."""
    gained: int
    """Rows where the second is better."""
    lost: int


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, rounds: int = ROUNDS, seed: int = 0
) -> Difference:
    """The difference of two models' values on the same rows, in the same order. UsageError where there is no row."""
    import numpy as np

    if len(first) != len(second) or not first:
        raise UsageError(f"{len(first)} and {len(second)} rows cannot be paired")
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    own = b - a
    draw = np.random.default_rng(seed)
    chunk = max(1, _AT_ONCE // len(own))
    means = np.concatenate(
        [
            own[draw.integers(0, len(own), (min(chunk, rounds - begin), len(own)))].mean(axis=1)
            for begin in range(0, rounds, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    gained, lost = int((own > 0).sum()), int((own < 0).sum())
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    return Difference(
        rows=len(own),
        first=float(a.mean()),
        second=float(b.mean()),
        value=float(own.mean()),
        low=float(low),
        high=float(high),
        p=mcnemar(gained, lost) if binary else None,
        gained=gained,
        lost=lost,
    )


def mcnemar(gained: int, lost: int) -> float:
    """The chance that a coin favours one side at least so much: exact, two-sided."""
    count, fewer = gained + lost, min(gained, lost)
    ways = tail = 1
    for k in range(fewer):
        ways = ways * (count - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << count))  # whole numbers: two to the power of some thousand is no float
