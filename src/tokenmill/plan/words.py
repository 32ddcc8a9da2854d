"""Numbers as people read them."""

from __future__ import annotations


def short(value: float) -> str:
    """Three digits and a unit: 6.74B, 15T, 812; 1e+21 where no unit is known."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 999.5e15:
            break
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
