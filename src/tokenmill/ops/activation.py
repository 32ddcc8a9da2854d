"""Activation functions by the names that configurations use, and the gated product of SwiGLU and GeGLU.

Source: Shazeer 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.ops import native_train
from tokenmill.ops.recompute import remember
from tokenmill.ops.registry import Op

_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,  # GPT-2's own formula; the tanh approximation written out
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": F.relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`; ConfigError names what is known."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}; known: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


@Op
def plain_activation(x: Tensor, name: str) -> Tensor:
    """``act(x)``, element by element."""
    return activation(name)(x)


@Op
def soft_cap(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``, element by element: no value beyond ``cap`` (Gemma Team 2024)."""
    return cap * torch.tanh(x / cap)


@Op
def gated_activation(gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
    """``act(gate) * up``, element by element; returns [T, F]."""
    return activation(name)(gate_TF) * up_TF


def _no_gradient(gate_TF: Tensor, up_TF: Tensor, name: str) -> str | None:
    wanted = torch.is_grad_enabled() and (gate_TF.requires_grad or up_TF.requires_grad)
    return None if wanted else "no gradient is wanted"


@gated_activation.backend("recompute", _no_gradient)
def _differentiable(gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
    """The same values; only ``gate`` and ``up`` are kept for the backward pass, what is between is computed again."""
    return remember(_Gated.apply(gate_TF, up_TF, name), _gated_values, gate_TF, up_TF, name)


@gated_activation.backend("values")
def _gated_values(gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
    """With the compiled kernels where they are: with a gradient and without, the same bits."""
    found = native_train.native_for(gate_TF, up_TF)
    if found is not None:
        return native_train.gated(found, gate_TF, up_TF, name)
    return gated_activation.reference(gate_TF, up_TF, name)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.name = name
        return _gated_values(gate_TF, up_TF, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TF: Tensor) -> tuple[Tensor | None, ...]:
        gate_TF, up_TF = ctx.saved_tensors
        found = native_train.native_for(gate_TF, up_TF, d_TF)
        if found is not None:
            return *native_train.gated_backward(found, gate_TF, up_TF, d_TF, ctx.name), None
        with torch.enable_grad():
            gate_TF = gate_TF.detach().requires_grad_()
            active_TF = activation(ctx.name)(gate_TF)
        (d_gate_TF,) = torch.autograd.grad(active_TF, gate_TF, d_TF * up_TF)
        return d_gate_TF, d_TF * active_TF.detach(), None
