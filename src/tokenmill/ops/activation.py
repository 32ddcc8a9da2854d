"""Activation functions by the names that configurations use, and the gated product of SwiGLU and GeGLU.

Source: Shazeer 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from tokenmill.core.errors import ConfigError, did_you_mean
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
def gated_activation(gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
    """``act(gate) * up``, element by element; returns [T, F]."""
    return activation(name)(gate_TF) * up_TF
