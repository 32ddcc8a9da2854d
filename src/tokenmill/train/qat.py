"""Quantisation-aware training: every linear layer multiplies what ``tokenmill quantize`` will make of its weight.

The rounding is that of the export (``quant/grid.py``), with the scales of the weights as they are at that moment, so
that a folder written from the trained weights computes what was trained, to the last bit. Inputs are rounded where the
method rounds them (w8a8, fp8). An adapter's part is folded into the weight first, as ``merge`` folds it. Gradients pass
through the rounding as if it were not there (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432):
scales reach a group's largest number, so that no weight lies beyond the grid and is to be left out.

Axes: T tokens · I in · O out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.adapt import merge_adapter
from tokenmill.adapt.layers import AdaptedLinear
from tokenmill.config.qat import QatConfig
from tokenmill.models.load import Model
from tokenmill.models.packing import replace
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear, LinearLayer
from tokenmill.nn.moe import StackedLinear
from tokenmill.ops.linear import linear
from tokenmill.ops.rounding import ROUNDINGS
from tokenmill.quant.grid import Grid, fit_scales, round_weight
from tokenmill.quant.layers import LEFT_ALONE
from tokenmill.quant.run import refuse_unfit
from tokenmill.quant.settings import Settings, settings


@dataclass(frozen=True)
class Rounding:
    """What becomes of a layer's weight and inputs, with gradients that pass through."""

    grid: Grid
    inputs: str | None
    """A name in ``ops/rounding.py``."""

    def weight(self, weight_OI: Tensor) -> Tensor:
        """A weight on its grid, in its own dtype."""
        rounded: Tensor = _Straight.apply(weight_OI, partial(_on_grid, grid=self.grid.fitted(weight_OI.shape[1])))
        return rounded

    def input(self, x_TI: Tensor) -> Tensor:
        """Inputs as the method wants them."""
        if self.inputs is None:
            return x_TI
        rounded: Tensor = _Straight.apply(x_TI, ROUNDINGS[self.inputs])
        return rounded


class _Straight(torch.autograd.Function):
    """``rounding(x)``; the gradient of x is that of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        del ctx
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None


def _on_grid(weight_OI: Tensor, grid: Grid) -> Tensor:
    return round_weight(weight_OI, fit_scales(weight_OI, grid), grid).to(weight_OI.dtype)


class RoundedLinear(Linear):
    """A linear layer that keeps its parameters, and their names, and multiplies the rounded weight."""

    def __init__(self, plain: Linear, rounding: Rounding) -> None:
        LinearLayer.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias, self.rounding = plain.weight, plain.bias, rounding
        self.plain = (plain,)  # not as a module: its parameters would have two names

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.rounding.input(x), self.rounding.weight(self.weight), self.bias)


class RoundedStacked(StackedLinear):
    """Experts of a mixture, each rounded by itself."""

    def __init__(self, plain: StackedLinear, rounding: Rounding) -> None:
        nn.Module.__init__(self)
        self.weight, self.rounding = plain.weight, rounding
        self.plain = (plain,)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return linear(self.rounding.input(x), self.rounding.weight(self.weight[expert]))


class RoundedAdapted(AdaptedLinear):
    """A layer with adapters whose sum is rounded: what ``merge`` and then ``quantize`` make of it."""

    def __init__(self, adapted: AdaptedLinear, rounding: Rounding) -> None:
        super().__init__(adapted.base, adapted.switch)
        self.adapters, self.rounding = adapted.adapters, rounding

    def forward(self, x: Tensor) -> Tensor:
        weight_OI, bias_O = self.folding()
        bias = None if bias_O is None else bias_O.to(x.dtype)
        rounded_OI = self.rounding.weight(weight_OI.to(self.base.dense().dtype))
        return linear(self.rounding.input(x), rounded_OI, bias)


def qat_settings(config: QatConfig) -> Settings:
    """What ``tokenmill quantize`` is to be asked for; UsageError where it could not be."""
    smooth = 0.0 if config.method == "w8a8" else None  # training moves outliers itself, and weights are rounded plainly
    return settings(
        config.method, bits=config.bits, group_size=config.group_size, symmetric=config.symmetric, smooth=smooth
    )


def round_layers(model: Model, config: QatConfig) -> int:
    """Let the layers that ``quantize`` would quantise multiply rounded weights, in place; returns how many.

    Raises what :func:`qat_settings` raises, ConfigError for a model that is no decoder, and UsageError for one that no
    layout holds quantised.
    """
    wanted = qat_settings(config)
    decoder = model.decoder
    refuse_unfit(model, wanted)
    rounding = Rounding(wanted.grid(scale_dtype(config, decoder.dtype)), wanted.inputs)
    count = 0
    for block in decoder.layers:
        assert isinstance(block, Block)
        inner = {id(layer.base) for layer in block.modules() if isinstance(layer, AdaptedLinear)}
        for name, layer in list(block.named_modules()):
            if name.rpartition(".")[2] in LEFT_ALONE or id(layer) in inner:
                continue  # what an adapter wraps is not rounded by itself, but with the adapter in it
            if (rounded := _rounded(layer, rounding)) is not None:
                replace(block, name, rounded.train(layer.training))
                count += 1
    return count


def scale_dtype(config: QatConfig, dtype: torch.dtype) -> torch.dtype:
    """How ``quantize`` stores the scales of weights of this type."""
    if config.scales != "auto":
        found: torch.dtype = getattr(torch, config.scales)
        return found
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16


def _rounded(layer: nn.Module, rounding: Rounding) -> nn.Module | None:
    """A layer's rounded twin; None for what is no linear layer."""
    if isinstance(layer, AdaptedLinear):
        return RoundedAdapted(layer, rounding)
    if type(layer) is StackedLinear:
        return RoundedStacked(layer, rounding)
    return RoundedLinear(layer, rounding) if type(layer) is Linear else None


def as_trained(model: Model) -> None:
    """The trained weights as a plain model, in place: unrounded, adapters folded in. ``quantize`` is given this."""
    for name, layer in list(model.network.named_modules()):
        if isinstance(layer, RoundedLinear | RoundedStacked):
            replace(model.network, name, layer.plain[0])
    if model.adapters is not None:
        merge_adapter(model)
