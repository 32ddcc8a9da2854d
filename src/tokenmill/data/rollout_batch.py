"""What a step of a policy objective is given: completions behind their prompts, packed, with all that is known of each
token. Axes: T tokens of all documents together, as in :mod:`tokenmill.data.batch`.

Values of a token stand where its label stands: at the position before it, whose output chose it. They are 0 where
there is no label (prompts, what a tool said, completions from which nothing is learned).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.data.batch import Batch


@dataclass
class RolloutBatch(Batch):
    """A micro-batch of completions."""

    sampler_T: Tensor
    """Log-probability of each label as the engine had it when it drew it, float32."""
    advantages_T: Tensor
    """float32; the same for all tokens of a completion where the whole completion is rewarded."""
    old_T: Tensor | None = None
    """Log-probability by the trainer before the first step on this rollout; None where the first step is the only one,
    whose own forward pass gives them."""
    reference_T: Tensor | None = None
    """By the reference; None where none is asked."""
    values_T: Tensor | None = None
    """What a critic said of each state when the completions were written; None where there is none."""
    returns_T: Tensor | None = None
    """What it should have said."""
    per_token: bool = False
    """The loss counts tokens, not completions."""
    measured: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is known of the rollout, for the log: sums and counts."""

    @property
    def num_labels(self) -> int:
        """What the loss is divided by: tokens, or completions."""
        return super().num_labels if self.per_token else len(self.lengths)

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch with its tensors on `device`."""
        tensors: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)
