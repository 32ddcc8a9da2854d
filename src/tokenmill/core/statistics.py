"""Small statistics that raters and models are measured with alike. Numbers in, numbers out.

Sources: Cohen 1960 (kappa of two raters).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

EXACT = 2000
"""Verdicts up to which the binomial test is summed exactly."""


def cohen_kappa(both: Sequence[tuple[str, str]]) -> float:
    """Kappa of two raters' verdicts on the same items; 1 where there is only one verdict and both always give it."""
    n = len(both)
    observed = sum(a == b for a, b in both) / n
    ours, theirs = Counter(a for a, _ in both), Counter(b for _, b in both)
    expected = sum(ours[verdict] * theirs[verdict] for verdict in ours) / (n * n)
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def binomial_p(hits: int, n: int) -> float:
    """Two-sided p-value of ``hits`` heads of ``n`` throws of a fair coin; by the normal distribution for many."""
    off = abs(hits - n / 2)
    if n > EXACT:
        return math.erfc(max(0.0, off - 0.5) / math.sqrt(n / 2))
    return min(1.0, sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= off) / 2**n)
