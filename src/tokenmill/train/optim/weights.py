"""The weights as an optimiser sees them: float32, whatever the model computes in.

A learning rate of 1e-5 changes a bfloat16 weight by less than its last digit, so updates would be lost. The usual cure,
a float32 copy, costs four bytes a weight. Here the lower half of the float32 number is kept beside the bfloat16 weight,
which is (rounded) the upper half: the same exact float32 weight for two bytes. float16 gets the copy.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Weights(Protocol):
    """Read and write the exact weight, flat, a piece at a time."""

    def read(self, piece: slice) -> Tensor:
        """Float32 (or float64) values; may be a view of the parameter that is written in place."""
        ...

    def write(self, piece: slice, values: Tensor) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the parameter."""
        ...


class PlainWeights:
    """A float32 or float64 parameter is its own exact weight."""

    def __init__(self, parameter: Tensor) -> None:
        self._flat = parameter.detach().view(-1)

    def read(self, piece: slice) -> Tensor:
        return self._flat[piece]

    def write(self, piece: slice, values: Tensor) -> None:
        if values.data_ptr() != self._flat[piece].data_ptr():
            self._flat[piece] = values

    def tensors(self) -> dict[str, Tensor]:
        return {}


class SplitWeights:
    """bfloat16 parameter plus int16 remainder: ``bits(float32) = bits(bfloat16) * 65536 + remainder``.

    Rounded half up, so that the remainder fits 16 bits. What the model computes with is within half a unit of the last
    place of the exact weight.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._high = parameter.detach().view(-1).view(torch.int16)
        self._low = torch.zeros_like(self._high)

    def read(self, piece: slice) -> Tensor:
        return (self._high[piece].to(torch.int32) << 16).add_(self._low[piece]).view(torch.float32)

    def write(self, piece: slice, values: Tensor) -> None:
        bits = values.view(torch.int32)
        # keeps the low 16 bits: what is left of the number after its rounded upper half, as a signed number
        self._low[piece] = bits
        self._high[piece] = (bits - self._low[piece]) >> 16

    def tensors(self) -> dict[str, Tensor]:
        return {"low": self._low}


class CopiedWeights:
    """A float16 parameter and its float32 copy."""

    def __init__(self, parameter: Tensor) -> None:
        self._flat = parameter.detach().view(-1)
        self._exact = self._flat.float()

    def read(self, piece: slice) -> Tensor:
        return self._exact[piece]

    def write(self, piece: slice, values: Tensor) -> None:
        if values.data_ptr() != self._exact[piece].data_ptr():
            self._exact[piece] = values
        self._flat[piece] = values

    def tensors(self) -> dict[str, Tensor]:
        return {"exact": self._exact}


def weights_of(parameter: Tensor) -> Weights:
    """The kind that suits the parameter's dtype. The parameter must be contiguous: it is changed in place."""
    if parameter.dtype == torch.bfloat16:
        return SplitWeights(parameter)
    return CopiedWeights(parameter) if parameter.dtype == torch.float16 else PlainWeights(parameter)
