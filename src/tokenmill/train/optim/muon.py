"""Muon for hidden matrices (Jordan 2024), AdamW for all else.

The momentum of a matrix is replaced by the nearest orthogonal matrix (Newton-Schulz, five steps), so that every
direction of a layer is learned at the same rate. The update is multiplied by ``0.2 sqrt(max(rows, columns))``, which
gives it the size of AdamW's: the same learning rate and weight decay serve both (Moonlight, arXiv 2502.16982).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.train.optim.adamw import AdamW
from tokenmill.train.optim.base import Group, ParameterState, wide
from tokenmill.train.optim.moments import Moment

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(AdamW):
    """Muon with Nesterov's momentum; parameters whose group says ``matrix`` take it, the others AdamW.

    A stack of matrices [experts, out, in] is taken matrix by matrix.
    """

    def __init__(self, *args: Any, momentum: float = 0.95, **how: Any) -> None:
        self.momentum = momentum
        super().__init__(*args, **how)

    def _moments(self, parameter: nn.Parameter, group: Group) -> dict[str, Moment]:
        if not group.matrix:
            return super()._moments(parameter, group)
        kind = self._kind or ("bfloat16" if parameter.element_size() == 2 else "float32")
        return {"momentum": self._moment(parameter, signed=True, kind=kind)}

    def _step(self, state: ParameterState, gradient: Tensor, lr: float, scale: float) -> None:
        if not state.group.matrix:
            super()._step(state, gradient, lr, scale)
            return
        everything = slice(0, state.parameter.numel())
        g = wide(gradient, scale)
        momentum = state.moments["momentum"].read(everything, state.parameter.device).view_as(g)
        momentum.lerp_(g, 1 - self.momentum)
        update = orthogonal(g.lerp(momentum, self.momentum))
        rows, columns = g.shape[-2:]
        w = state.weights.read(everything).view_as(g)
        w.mul_(1 - lr * state.group.weight_decay)
        w.add_(update.to(w.dtype), alpha=-lr * 0.2 * max(rows, columns) ** 0.5)
        state.weights.write(everything, w.view(-1))
        state.moments["momentum"].write(everything, momentum.view(-1))


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly ``U V^T`` of ``U S V^T``, in bfloat16: singular values end between about 0.7 and 1.2. Batches too."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
