"""What calibration tells of a linear layer's inputs: second moments, means and maxima of columns.

Layers that are given the same inputs (queries, keys and values; gate and up) share one.

Axes: T tokens · I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

SAMPLED = 256
"""Tokens of a batch whose inputs are kept."""


@dataclass
class InputStatistics:
    """Sums over all tokens that reached a layer."""

    moments_II: Tensor
    """Sum of x x^T, float32: GPTQ's Hessian but for a factor."""
    magnitudes_I: Tensor
    """Sum of |x|."""
    largest_I: Tensor
    """Largest |x|."""
    tokens: int = 0
    some: list[Tensor] = field(default_factory=list)
    """Tokens from all over the calibration, float32 [n, I] each."""

    @classmethod
    def empty(cls, inputs: int, device: torch.device) -> InputStatistics:
        """Of no tokens."""
        zeros = torch.zeros(inputs, device=device)
        return cls(torch.zeros(inputs, inputs, device=device), zeros, zeros.clone())

    def add(self, x_TI: Tensor) -> None:
        """More tokens."""
        x_TI = x_TI.reshape(-1, x_TI.shape[-1]).float()
        self.moments_II.addmm_(x_TI.t(), x_TI)
        size_TI = x_TI.abs()
        self.magnitudes_I += size_TI.sum(0)
        if len(x_TI):
            self.largest_I = torch.maximum(self.largest_I, size_TI.amax(0))
        self.tokens += len(x_TI)
        self.some.append(x_TI[:: max(1, len(x_TI) // SAMPLED)].clone())

    def hessian(self) -> Tensor:
        """Mean of x x^T, [I, I]."""
        return self.moments_II / max(1, self.tokens)

    def means(self) -> Tensor:
        """Mean of |x|, [I]."""
        return self.magnitudes_I / max(1, self.tokens)

    def sample(self) -> Tensor:
        """Some tokens' inputs, [n, I]."""
        return torch.cat(self.some)

    def error(self, weight_OI: Tensor, off_OI: Tensor) -> float | None:
        """Square of what ``off`` changes of a layer's outputs, as a share of these outputs' square; None where no
        token, or none of finite numbers, was seen."""
        if not self.tokens or not bool(torch.isfinite(self.moments_II).all()):
            return None
        hessian_II = self.hessian()
        changed, whole = (((one_OI @ hessian_II) * one_OI).sum() for one_OI in (off_OI, weight_OI))
        return float(changed / whole.clamp(min=1e-30))

    def scaled(self, factor_I: Tensor) -> InputStatistics:
        """Those of ``x * factor``."""
        moments_II = self.moments_II * factor_I[:, None] * factor_I
        some = [x_TI * factor_I for x_TI in self.some]
        return InputStatistics(moments_II, self.magnitudes_I * factor_I, self.largest_I * factor_I, self.tokens, some)


@dataclass
class LayerStatistics:
    """Of all linear layers of a block, gathered by listeners of a walk. An expert has its number behind its name."""

    by_name: dict[str, InputStatistics] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    """How often each hook fired."""
    _last: tuple[str, Tensor] | None = None

    def hear(self, name: str, x_TI: Tensor, expert: int | None = None) -> None:
        """What a layer is given, as a walk tells it."""
        key = name if expert is None else f"{name}.{expert}"
        self.heard[key] = self.heard.get(key, 0) + 1
        if self._last is not None and self._last[1] is x_TI:  # the layer before this one was given the same
            self.by_name[key] = self.by_name[self._last[0]]
            return
        if key not in self.by_name:
            self.by_name[key] = InputStatistics.empty(x_TI.shape[-1], x_TI.device)
        self.by_name[key].add(x_TI)
        self._last = (key, x_TI)

    def finish(self) -> None:
        """Let go of the last inputs."""
        self._last = None
