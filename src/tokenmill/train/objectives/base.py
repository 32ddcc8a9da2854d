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
    """A value: no state that changes while training, so that a resumed run needs none."""

    def count(self, batch: Any) -> int:
        """What the loss of this batch will be divided by; known before the forward pass, as the whole step needs it."""
        ...

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        """Forward pass and loss of one micro-batch; ``Loss.count`` equals :meth:`count`."""
        ...


IGNORED = -100
"""The label of a token without a loss, as torch and Hugging Face have it."""


def count_labels(labels_T: Tensor) -> int:
    """How many labels count."""
    return int((labels_T != IGNORED).sum())
