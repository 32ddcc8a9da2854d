"""AdamW (Loshchilov and Hutter 2019), with its moments in float32, bfloat16 or 8 bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenmill.train.optim.base import Group, Optimizer, ParameterState, pieces, wide
from tokenmill.train.optim.moments import Kind, Moment


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
