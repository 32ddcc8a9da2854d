"""What the loop asks of an objective: a sum over what is counted, and the count, never an average.

The loop divides by the count of the whole optimiser step, over micro-batches and processes, so a gradient does not
depend on how a step is split (the mistake behind "gradient accumulation yields worse results", trl #2175).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass
class Loss:
    """``sum``: a scalar with a gradient, summed over ``count`` valid tokens; ``metrics``: sums to report beside it.

    A metric is divided by the step's count like the loss, so a share of tokens is reported by summing ones.
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """A value: it has no state that changes while training, so a resumed run needs none of it."""

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        """Forward pass and loss of one micro-batch; ``Loss.count`` is the batch's ``num_labels``.

        The loop needs that number before the forward pass, for the whole step, so it is the batch that says it.
        """
        ...
