"""How well scores tell preferences apart, and whether their confidence is deserved. Numbers in, numbers out.

A margin (score of the chosen answer minus that of the rejected one) says with probability sigmoid(margin) that the
chosen one is better (Bradley-Terry); calibration compares what it says with what is. Guo et al. 2017 (expected
calibration error), Brier 1950.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.core.errors import UsageError

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Verdicts of which a model is about as sure."""

    confidence: float
    """Mean probability of what it prefers."""
    accuracy: float
    """Share of them where it is right."""
    count: int


@dataclass(frozen=True)
class Preferences:
    """What scores are worth on labelled pairs."""

    pairs: int
    accuracy: float
    """Share of pairs whose chosen answer has the higher score; equal scores count half."""
    stderr: float
    log_loss: float
    """Mean of -log sigmoid(margin), nats; ln 2 = 0.693 is what no opinion costs."""
    brier: float
    ece: float
    """Expected calibration error: mean distance of confidence and accuracy, weighted by the bins."""
    mean_margin: float
    mean_score: float
    accuracy_longer: float | None
    """Where the chosen answer is the longer one; far above the next, the model measures length."""
    accuracy_shorter: float | None
    bins: tuple[Bin, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def judge_scores(
    chosen: Sequence[float], rejected: Sequence[float], lengths: Sequence[tuple[int, int]] | None = None
) -> Preferences:
    """Measure the scores of pairs. ``lengths``: of the chosen and the rejected answer.

    UsageError where there is no pair, or a score is no number.
    """
    count = len(chosen)
    if count == 0:
        raise UsageError("there is no pair to judge scores by")
    if not all(map(math.isfinite, (*chosen, *rejected))):
        raise UsageError("a score is not a finite number: the model is broken")
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    right = [_right(margin) for margin in margins]
    accuracy = sum(right) / count
    wins = [_sigmoid(margin) for margin in margins]
    bins = _bins(margins, right)
    longer, shorter = _by_length(right, lengths)
    return Preferences(
        pairs=count,
        accuracy=accuracy,
        stderr=math.sqrt(accuracy * (1 - accuracy) / count),
        log_loss=sum(math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins) / count,
        brier=sum((1 - p) ** 2 for p in wins) / count,
        ece=sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / count,
        mean_margin=sum(margins) / count,
        mean_score=(sum(chosen) + sum(rejected)) / (2 * count),
        accuracy_longer=longer,
        accuracy_shorter=shorter,
        bins=bins,
    )


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _bins(margins: Sequence[float], right: Sequence[float]) -> tuple[Bin, ...]:
    return reliability([_sigmoid(abs(margin)) for margin in margins], right, low=0.5)


def reliability(confidences: Sequence[float], right: Sequence[float], *, low: float) -> tuple[Bin, ...]:
    """Bins of equal widths of confidence from ``low`` to 1, each with how often what is in it was right; empty ones are
    left out."""
    held: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for confidence, hit in zip(confidences, right, strict=True):
        held[min(BINS - 1, int((confidence - low) / (1 - low) * BINS))].append((confidence, hit))
    return tuple(
        Bin(sum(c for c, _ in one) / len(one), sum(h for _, h in one) / len(one), len(one)) for one in held if one
    )


def _by_length(right: Sequence[float], lengths: Sequence[tuple[int, int]] | None) -> tuple[float | None, float | None]:
    def mean(hits: list[float]) -> float | None:
        return sum(hits) / len(hits) if hits else None

    if lengths is None:
        return None, None
    rows = list(zip(right, lengths, strict=True))
    return mean([hit for hit, (a, b) in rows if a > b]), mean([hit for hit, (a, b) in rows if a < b])
