"""What the loop asks of an objective: a sum over what is counted, and the count, never an average.

The loop divides by the count of the whole optimiser step, over micro-batches and processes, so a gradient does not
depend on how a step is split (the mistake behind "gradient accumulation yields worse results", trl #2175).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tokenmill.train.distributed import World


@dataclass(frozen=True)
class Most:
    """A metric of which the largest counts, instead of the mean."""

    value: float


Metric = float | tuple[float, float] | Most


@dataclass
class Loss:
    """``sum``: a scalar with a gradient, summed over ``count`` valid tokens, or samples; ``metrics``: sums to report.

    A metric is divided by the step's count like the loss, so a share of tokens is reported by summing ones; one that
    is given as ``(sum, count)`` is divided by a count of its own, and of :class:`Most` the largest is reported.
    ``nll`` is a second part of the loss, which is divided by the ``num_nll`` of the step's batches: likelihood, a mean
    over tokens, beside a mean over samples.
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    nll: Tensor | None = None


class Objective(Protocol):
    """A value: it has no state that changes while training, so a resumed run needs none of it."""

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        """Forward pass and loss of one micro-batch; ``Loss.count`` is the batch's ``num_labels``.

        The loop needs that number before the forward pass, for the whole step, so it is the batch that says it.
        """
        ...


@runtime_checkable
class OfStep(Protocol):
    """An objective that must know something of the whole step before the loss of any part of it (KTO's baseline)."""

    def of_step(self, model: nn.Module, batches: Sequence[Any], world: World) -> Objective:
        """The objective of this step. ``batches``: this process's; what is measured is summed over all of them."""
        ...
