"""How far raters agree, and whether the side on which an answer stands decides. Numbers in, numbers out.

Sources: Krippendorff 2011 (alpha, nominal data, any number of raters, missing values).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from tokenmill.align.label.log import Label
from tokenmill.core.statistics import binomial_p, cohen_kappa


@dataclass(frozen=True)
class Agreement:
    """Of raters on the items that at least two of them judged; skipped ones are not judged."""

    raters: int
    items: int
    """Judged by two or more."""
    share: float | None
    """Of pairs of verdicts on one item, those that are equal."""
    alpha: float | None
    """Krippendorff's: 1 all agree, 0 as by chance; from 0.8 on conclusions are safe, from 0.667 tentative."""
    kappas: dict[str, float]
    """Cohen's kappa of every two raters with items in common, by ``"a, b"``."""


@dataclass(frozen=True)
class PositionBias:
    """Verdicts for a side. Sides are drawn by a coin, so without a bias half of them are for the left."""

    left: int
    right: int
    share: float | None
    """For the left."""
    p_value: float | None
    """Of a deviation at least as large, were there no bias (two-sided binomial test)."""


def agreement(labels: Iterable[Label]) -> Agreement:
    """Measure the agreement of all raters."""
    by_item: dict[str, dict[str, str]] = {}
    for label in labels:
        if label.verdict != "skip":
            by_item.setdefault(label.item, {})[label.rater] = label.verdict
    raters = sorted({rater for votes in by_item.values() for rater in votes})
    units = [list(votes.values()) for votes in by_item.values() if len(votes) > 1]
    equal = sum(a == b for unit in units for a, b in combinations(unit, 2))
    count = sum(math.comb(len(unit), 2) for unit in units)
    kappas = {}
    for a, b in combinations(raters, 2):
        both = [(votes[a], votes[b]) for votes in by_item.values() if a in votes and b in votes]
        if both:
            kappas[f"{a}, {b}"] = cohen_kappa(both)
    return Agreement(len(raters), len(units), equal / count if count else None, krippendorff_alpha(units), kappas)


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Alpha of nominal verdicts, a list for each item; None without two verdicts on an item."""
    units = [unit for unit in units if len(unit) > 1]
    totals = Counter(verdict for unit in units for verdict in unit)
    n = totals.total()
    if n == 0:
        return None
    observed = sum(_unequal(Counter(unit)) / (len(unit) - 1) for unit in units) / n
    expected = _unequal(totals) / (n * (n - 1))
    return 1.0 if expected == 0 else 1 - observed / expected


def _unequal(counts: Counter[str]) -> int:
    """Ordered pairs of different verdicts."""
    n = counts.total()
    return n * n - sum(c * c for c in counts.values())


def position_bias(labels: Iterable[Label]) -> PositionBias:
    """Count verdicts by side; ties and skipped items have none."""
    sides = [
        (label.verdict == "second") == bool(label.left) for label in labels if label.verdict in ("first", "second")
    ]
    left, n = sum(sides), len(sides)
    return PositionBias(left, n - left, left / n if n else None, binomial_p(left, n) if n else None)
