"""Layers over quantised weights (``formats/codes.py``): what runs without the native kernels, and on CUDA.

Weights stay as codes (``ops/quantised_linear.py``); where a layout says so, inputs are rounded first. The native
kernels serve the same codes as :class:`~tokenmill.nn.packed.PackedLinear`, with inputs in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tokenmill.formats.codes import Codes
from tokenmill.nn.linear import LinearLayer
from tokenmill.nn.moe import StackedLinear
from tokenmill.ops.quantised_linear import Held, quantised_linear


class _Held(nn.Module):
    """Codes as buffers, so that they move with the model."""

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        held = Held.of(codes)
        self.bits, self.paired = codes.bits, held.paired
        self.register_buffer("codes", held.codes, persistent=False)
        self.register_buffer("scales", codes.scales_OG, persistent=False)
        self.register_buffer("zeros", codes.zeros_OG, persistent=False)
        self.register_buffer("groups", codes.groups_I, persistent=False)
        self.register_buffer("levels", codes.levels_OK, persistent=False)

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None
    levels: Tensor | None

    def held(self) -> Held:
        """For a product."""
        return Held(self.codes, self.paired, self.scales, self.zeros, self.bits, self.groups, self.levels)

    def matrix(self) -> Codes:
        """The codes again."""
        return self.held().matrix()


class QuantisedLinear(LinearLayer):
    """``y = round(x) W^T + b`` over codes. ``inputs``: how x is rounded, a name in ``ops/rounding.py``; None: not."""

    def __init__(self, codes: Codes, bias: Tensor | None, inputs: str | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.held, self.inputs = _Held(codes), inputs
        self.quantization = f"{'fp' if codes.is_float else 'int'}{codes.bits}"
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def matrix(self) -> Codes:
        """The weight as it lies in memory."""
        return self.held.matrix()

    def dense(self) -> Tensor:
        return self.matrix().dense()

    def forward(self, x: Tensor) -> Tensor:
        return quantised_linear(x, self.held.held(), self.bias, self.inputs)


class QuantisedStacked(StackedLinear):
    """One matrix of codes an expert."""

    def __init__(self, experts: Sequence[Codes], inputs: str | None = None) -> None:
        nn.Module.__init__(self)
        self.experts = nn.ModuleList(_Held(codes) for codes in experts)
        self.inputs = inputs

    def matrices(self) -> list[Codes]:
        """The weights as they lie in memory, by expert."""
        return [held.matrix() for held in self.experts if isinstance(held, _Held)]

    def forward(self, x: Tensor, expert: int) -> Tensor:
        held = self.experts[expert]
        assert isinstance(held, _Held)
        return quantised_linear(x, held.held(), None, self.inputs)
