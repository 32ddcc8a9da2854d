"""What duels say: win rate, the same at equal length, how far the judge can be trusted. Numbers in, numbers out.

The length-adjusted win rate is that of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) without its terms for single
questions: a logistic regression of the outcome on tanh(difference of lengths / its deviation), read off where the
lengths are equal. A judge that only likes length comes to a half there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.core.statistics import binomial_p, cohen_kappa
from tokenmill.evals.judge.duel import Duel
from tokenmill.evals.tasks.aggregate import mean_stderr

RIDGE = 0.05
"""Of the regression: as if each coefficient were seen at nought with this weight; keeps clean sweeps finite."""
SUSPICIOUS = 0.01
"""p-value below which a judge counts as biased."""


@dataclass(frozen=True)
class Agreement:
    """Of a judge with people, on the pairs that both judged."""

    items: int
    share: float
    kappa: float
    """Cohen's, over first, second and tie."""


@dataclass(frozen=True)
class Figures:
    """What duels say of the first answers beside the second ones."""

    pairs: int
    unreadable: int
    """Pairs without a verdict; they are no part of what follows."""
    wins: int
    losses: int
    ties: int
    win_rate: float | None
    """Of the first answers; a tie is half a win."""
    stderr: float | None
    length_adjusted: float | None
    """The win rate, were both answers of the same length."""
    mean_lengths: tuple[float, float]
    """Characters of the first and the second answers."""
    consistent: float | None
    """Share of verdicts that survive the swap."""
    same_place: tuple[int, int]
    """Pairs of which it preferred the answer shown first, whichever it was; and the one shown second."""
    position_p: float | None
    """p-value of so uneven a choice of places, were places nothing to it (sign test)."""
    categories: dict[str, float]
    """Win rate by category."""
    agreement: Agreement | None = None

    @property
    def position_biased(self) -> bool:
        """Whether the judge goes by the place."""
        return self.position_p is not None and self.position_p < SUSPICIOUS

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "position_biased": self.position_biased}


def figures_of(duels: Sequence[Duel], people: Mapping[str, str] | None = None) -> Figures:
    """Measure duels. ``people``: what they said of a pair (first, second, tie), by its id."""
    read = [one for one in duels if one.verdict is not None]
    outcomes = [one.outcome for one in read if one.outcome is not None]
    rate, stderr = mean_stderr(outcomes) if outcomes else (None, None)
    lengths = [(len(one.pair.first), len(one.pair.second)) for one in read]
    first = sum(one.slots == ("A", "A") for one in read)
    second = sum(one.slots == ("B", "B") for one in read)
    by_category: dict[str, list[float]] = {}
    for one, outcome in zip(read, outcomes, strict=True):
        by_category.setdefault(one.pair.category, []).append(outcome)
    return Figures(
        pairs=len(duels),
        unreadable=len(duels) - len(read),
        wins=outcomes.count(1.0),
        losses=outcomes.count(0.0),
        ties=outcomes.count(0.5),
        win_rate=rate,
        stderr=stderr,
        length_adjusted=length_adjusted([a - b for a, b in lengths], outcomes) if outcomes else None,
        mean_lengths=_means(lengths),
        consistent=sum(one.consistent for one in read) / len(read) if read else None,
        same_place=(first, second),
        position_p=binomial_p(first, first + second) if first + second else None,
        categories={name: sum(values) / len(values) for name, values in sorted(by_category.items()) if name},
        agreement=None if people is None else _agreement(read, people),
    )


def length_adjusted(differences: Sequence[float], outcomes: Sequence[float]) -> float:
    """The win rate at equal length. ``differences``: characters of the first answer less those of the second."""
    spread = math.sqrt(math.fsum(d * d for d in differences) / len(differences))
    x = [math.tanh(d / spread) if spread else 0.0 for d in differences]
    level = slope = 0.0
    for _ in range(50):  # Newton's steps on a convex loss: a handful is enough
        p = [1 / (1 + math.exp(-(level + slope * v))) for v in x]
        w = [q * (1 - q) for q in p]
        g0 = math.fsum(q - y for q, y in zip(p, outcomes, strict=True)) + RIDGE * level
        g1 = math.fsum((q - y) * v for q, y, v in zip(p, outcomes, x, strict=True)) + RIDGE * slope
        h00, h11 = math.fsum(w) + RIDGE, math.fsum(u * v * v for u, v in zip(w, x, strict=True)) + RIDGE
        h01 = math.fsum(u * v for u, v in zip(w, x, strict=True))
        determinant = h00 * h11 - h01 * h01
        d0, d1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # a clean sweep bends the loss so little that a whole step would overshoot
        scale = min(1.0, 2.0 / max(abs(d0), abs(d1), 1e-12))
        level, slope = level - scale * d0, slope - scale * d1
        if max(abs(d0), abs(d1)) < 1e-9:
            break
    return 1 / (1 + math.exp(-level))


def _agreement(read: Sequence[Duel], people: Mapping[str, str]) -> Agreement | None:
    both = [(str(one.verdict), people[one.pair.id]) for one in read if one.pair.id in people]
    if not both:
        return None
    return Agreement(len(both), sum(a == b for a, b in both) / len(both), cohen_kappa(both))


def _means(lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
    count = max(1, len(lengths))
    return sum(a for a, _ in lengths) / count, sum(b for _, b in lengths) / count
