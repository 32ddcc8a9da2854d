"""Learning rate and batch size as functions of the step alone, so that a resumed run needs no state of them.

``wsd`` (warm-up, stable, decay) begins its cooldown at a share of the run's end: a run that is resumed from any
checkpoint with another number of steps cools down from there. Steps are counted from 0: the update about to be made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmill.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe

SHAPES: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda progress, cooldown: 1.0,
    "linear": lambda progress, cooldown: 1.0 - progress,
    "cosine": lambda progress, cooldown: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "wsd": lambda progress, cooldown: min(1.0, (1.0 - progress) / cooldown),
}
"""From 1 down to 0 over the run behind the warm-up (progress 0 to 1); then stretched to end at ``min_lr``."""


@dataclass(frozen=True)
class Schedule:
    """``lr(step)`` and ``micro_batches(step)``."""

    kind: str
    peak: float
    total: int
    """Steps of the whole run."""
    warmup: int = 0
    cooldown: float = 0.2
    min_lr: float = 0.0
    """The last learning rate as a share of the highest; ``constant`` stays at the highest."""
    accumulate: int = 1
    """Micro-batches of a full step."""
    ramp: float = 0.0
    """Share of the run over which the batch grows: half of it at a quarter, half of it at half the size."""

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ConfigError(f"unknown schedule {self.kind!r}{did_you_mean(self.kind, SHAPES)}; one of {list(SHAPES)}")

    @classmethod
    def of(cls, recipe: Recipe, *, total: int, accumulate: int, lr: float) -> Schedule:
        """The schedule of a recipe whose number of steps, micro-batches and learning rate are known."""
        warmup = recipe.warmup if isinstance(recipe.warmup, int) else round(recipe.warmup * total)
        return cls(recipe.schedule, lr, total, warmup, recipe.cooldown, recipe.min_lr, accumulate, recipe.batch_ramp)

    def lr(self, step: int) -> float:
        """The learning rate of the update after ``step`` updates; follows the square root of a smaller batch."""
        share = math.sqrt(self.micro_batches(step) / self.accumulate)
        if step < self.warmup:
            return self.peak * share * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        shape = SHAPES[self.kind](progress, self.cooldown)
        return self.peak * share * (self.min_lr + (1.0 - self.min_lr) * shape)

    def micro_batches(self, step: int) -> int:
        """Micro-batches of a process in this step."""
        progress = step / max(1, self.total)
        part = 1.0 if progress >= self.ramp else 0.5 if progress >= self.ramp / 2 else 0.25
        return max(1, round(self.accumulate * part))
