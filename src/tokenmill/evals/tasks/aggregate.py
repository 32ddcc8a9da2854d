"""From samples to figures: means with standard errors, pass@k, bootstrap. Numbers in, numbers out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence


def mean_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample deviation over root n, as lm-eval; 0 for a single value)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that one of ``k`` drawn samples passes, unbiased (Chen et al. 2021, equation 1).

    Computed as a product, since the binomial coefficients overflow.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {passed} of {samples} is not defined")
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(samples - passed + 1, samples + 1))


def bootstrap_stderr(score: Callable[[Sequence[int]], float], count: int, *, rounds: int = 100, seed: int = 0) -> float:
    """Standard error of a figure of ``count`` rows that is no mean of them: ``score`` is given rows drawn anew."""
    draw = random.Random(seed)
    figures = [score([draw.randrange(count) for _ in range(count)]) for _ in range(rounds)]
    mean = math.fsum(figures) / rounds
    return math.sqrt(math.fsum((f - mean) ** 2 for f in figures) / (rounds - 1))
