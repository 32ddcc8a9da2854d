"""Is this step to be trusted? Losses and gradient norms are compared with those of the last steps.

A step is a spike when its loss or its gradient norm is more than ``sigma`` standard deviations above the mean of a
rolling window (OLMo: 6 over 128). What was judged bad never enters the window. The window is part of a checkpoint.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

Verdict = Literal["not finite", "spike"] | None

LEAST_DEVIATION = 0.005
"""Of the mean: a loss that hardly moves must not make a spike of its own noise."""


class SpikeGuard:
    """The window. ``judge`` changes nothing; ``accept`` adds a step that was trusted."""

    def __init__(self, window: int = 128, sigma: float = 6.0) -> None:
        self.sigma = sigma
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def judge(self, loss: float, norm: float) -> Verdict:
        """Whether this step is one that a run should not make."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        full = len(self._losses) == self._losses.maxlen
        return "spike" if full and max(self.scores(loss, norm)) > self.sigma else None

    def scores(self, loss: float, norm: float) -> tuple[float, float]:
        """Standard deviations that loss and norm lie above the window's mean."""
        return _score(loss, self._losses), _score(norm, self._norms)

    def accept(self, loss: float, norm: float) -> None:
        """This step was made."""
        self._losses.append(loss)
        self._norms.append(norm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; JSON keeps every digit of a float."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; a smaller window keeps its newest."""
        for kept, name in ((self._losses, "losses"), (self._norms, "norms")):
            kept.clear()
            kept.extend(state[name])


def _score(value: float, window: deque[float]) -> float:
    if not window:
        return 0.0
    mean = sum(window) / len(window)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in window) / len(window))
    return (value - mean) / max(deviation, LEAST_DEVIATION * abs(mean), 1e-12)


class LossScale:
    """float16 gradients below 6e-8 vanish, so the loss is multiplied: doubled after many good steps, halved after an
    overflow (Micikevicius et al. 2018). One, and without effect, for the other formats."""

    GROW_AFTER = 2000

    def __init__(self, active: bool) -> None:
        self.active = active
        self.value = 2.0**16 if active else 1.0
        self._good = 0

    def overflowed(self) -> bool:
        """Halve after a gradient that is not finite; False when there is nothing left to halve."""
        if not self.active or self.value <= 1.0:
            return False
        self.value, self._good = self.value / 2, 0
        return True

    def succeeded(self) -> None:
        """A step was made."""
        self._good += 1
        if self.active and self._good >= self.GROW_AFTER:
            self.value, self._good = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value, "good": self._good}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.value, self._good = state["value"], state["good"]
