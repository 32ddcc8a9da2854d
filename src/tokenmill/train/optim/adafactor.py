"""Adafactor (Shazeer and Stern 2018): the second moment of a matrix as one number a row and one a column.

As torch has it: no first moment, updates clipped to a root mean square of ``clip``, the learning rate times the size
of the parameter and at most ``1/sqrt(step)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.train.optim.base import Group, Optimizer, ParameterState, wide
from tokenmill.train.optim.moments import Moment


class Adafactor(Optimizer):
    """``lr`` is relative: 0.01 changes a parameter by about a hundredth of its size."""

    def __init__(self, *args: Any, eps: float = 1e-3, clip: float = 1.0, decay: float = -0.8, **how: Any) -> None:
        self.eps, self.clip, self.decay = eps, clip, decay
        super().__init__(*args, **how)

    def _moments(self, parameter: nn.Parameter, group: Group) -> dict[str, Moment]:
        if parameter.ndim < 2:
            return {"v": self._moment(parameter, signed=False, kind="float32")}
        sizes = {"rows": parameter.numel() // parameter.shape[-1], "columns": parameter.numel() // parameter.shape[-2]}
        return {k: self._moment(parameter, signed=False, kind="float32", size=size) for k, size in sizes.items()}

    def _step(self, state: ParameterState, gradient: Tensor, lr: float, scale: float) -> None:
        g = wide(gradient, scale)
        w = state.weights.read(slice(0, g.numel())).view_as(g)
        forget = self.steps**self.decay
        size = lr if lr < self.steps**-0.5 else self.steps**-0.5
        alpha = max(self.eps, w.norm().item() / w.numel() ** 0.5) * size
        w.mul_(1 - lr * state.group.weight_decay)
        update = self._variance(state, g, forget)
        update.clamp_(min=torch.finfo(g.dtype).eps ** 2).rsqrt_().mul_(g)
        rms = update.norm().item() / update.numel() ** 0.5
        w.add_(update, alpha=-alpha / max(1.0, rms / self.clip))
        state.weights.write(slice(0, g.numel()), w.view(-1))

    @staticmethod
    def _variance(state: ParameterState, g: Tensor, forget: float) -> Tensor:
        def averaged(key: str, new: Tensor) -> Tensor:
            everything = slice(0, new.numel())
            kept = state.moments[key].read(everything, g.device)
            kept.lerp_(new.reshape(-1), forget)
            state.moments[key].write(everything, kept)
            return kept.view_as(new)

        if g.ndim < 2:
            return averaged("v", g.square()).clone()
        squares = g.square()
        rows, columns = averaged("rows", squares.mean(-1, keepdim=True)), averaged("columns", squares.mean(-2, True))
        return (rows @ columns).div_(rows.mean(-2, keepdim=True).clamp(min=torch.finfo(g.dtype).eps))
