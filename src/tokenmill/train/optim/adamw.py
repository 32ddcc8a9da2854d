"""AdamW (Loshchilov and Hutter 2019), with its moments in float32, bfloat16 or 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.ops import native_train
from tokenmill.train.optim.base import Group, Optimizer, ParameterState, pieces, wide
from tokenmill.train.optim.moments import Kind, Moment
from tokenmill.train.optim.weights import PlainWeights, SplitWeights


class AdamW(Optimizer):
    """torch's AdamW to the last digits, where the moments are float32.

    ``moments=None`` chooses: float32 for float32 weights; for 16-bit ones bfloat16 for the first moment, and for the
    second while a step changes it by more than bfloat16's rounding (beta2 up to 0.98; so DeepSeek-V3), else float32.
    """

    def __init__(self, *args: Any, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, **how: Any) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(*args, **how)

    def _moments(self, parameter: nn.Parameter, group: Group) -> dict[str, Moment]:
        first: Kind
        second: Kind
        if self._kind is not None:
            first = second = self._kind
        else:
            first = "bfloat16" if parameter.element_size() == 2 else "float32"
            second = first if self.betas[1] <= 0.98 else "float32"
        return {
            "m": self._moment(parameter, signed=True, kind=first),
            "v": self._moment(parameter, signed=False, kind=second),
        }

    def _step(self, state: ParameterState, gradient: Tensor, lr: float, scale: float) -> None:
        beta1, beta2 = self.betas
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        flat, device = gradient.reshape(-1), state.parameter.device
        arrays = self._plain_arrays(state)
        found = None if arrays is None else native_train.native_for(flat)
        if found is not None and arrays is not None:
            decay = 1 - lr * state.group.weight_decay
            numbers = (beta2, 1 - beta1, 1 - beta2, self.eps, decay, scale, correction2**0.5, lr / correction1)
            native_train.adamw(found, *arrays, flat, numbers)
            return
        for piece in pieces(state.parameter):
            g = wide(flat[piece], scale)
            w = state.weights.read(piece)
            m, v = (state.moments[key].read(piece, device) for key in ("m", "v"))
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            w.mul_(1 - lr * state.group.weight_decay)
            w.addcdiv_(m, (v.sqrt() / correction2**0.5).add_(self.eps), value=-lr / correction1)
            state.weights.write(piece, w)
            state.moments["m"].write(piece, m)
            state.moments["v"].write(piece, v)

    @staticmethod
    def _plain_arrays(state: ParameterState) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
        """Weights, their lower halves, and moments, where all of it lies as the compiled kernel takes it."""
        m, v = (state.moments[key].tensors().get("") for key in ("m", "v"))
        split = isinstance(state.weights, SplitWeights)
        if m is None or v is None or not (split or isinstance(state.weights, PlainWeights)):
            return None
        if any(t.dtype not in (torch.float32, torch.bfloat16) or t.device.type != "cpu" for t in (m, v)):
            return None
        return state.parameter.detach(), state.weights.tensors().get("low"), m, v
