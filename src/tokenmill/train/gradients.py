"""The gradients of one optimiser step: summed over micro-batches and processes in float32, their norm, and no copies.

A step of one micro-batch on one process leaves 16-bit gradients as autograd made them. Where several are summed,
16-bit ones are added to float32 buffers as soon as each is complete, and freed: summed in bfloat16, the small ones of
later micro-batches would be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tokenmill.ops import native_train
from tokenmill.train.distributed import World


class GradientSum:
    """Use: ``begin``, backward passes, ``finish``; then a mapping by name until the next ``begin``."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._sums: dict[str, Tensor] = {}
        self._summing = False
        self._handles = [
            p.register_post_accumulate_grad_hook(lambda p, name=name: self._add(name, p))
            for name, p in self.parameters.items()
            if p.element_size() == 2
        ]

    def close(self) -> None:
        """Leave the parameters as they were."""
        for handle in self._handles:
            handle.remove()
        self._sums.clear()
        for parameter in self.parameters.values():
            parameter.grad = None

    def begin(self, *, several: bool) -> None:
        """Forget the last step's. ``several``: more than one micro-batch or process will be summed."""
        self._summing = several
        if not several:
            self._sums.clear()
        for buffer in self._sums.values():
            buffer.zero_()
        for parameter in self.parameters.values():
            parameter.grad = None

    def _add(self, name: str, parameter: Tensor) -> None:
        if not self._summing or parameter.grad is None:
            return
        if name not in self._sums:
            self._sums[name] = parameter.grad.float()
        else:
            self._sums[name] += parameter.grad
        parameter.grad = None

    def finish(self, world: World) -> dict[str, Tensor]:
        """The gradients by name, summed over all processes. A parameter that no loss reached has none."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            gradient = self._sums.get(name, parameter.grad)
            if gradient is None and world.size > 1:  # another process may have one
                gradient = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
            if gradient is not None:
                found[name] = gradient
        world.sum_tensors(found.values())
        return found


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """The norm of all gradients together, accumulated in float32 (float64 for float64)."""
    if not gradients:
        return 0.0
    compiled = {name: found for name, g in gradients.items() if (found := native_train.native_for(g)) is not None}
    squares = sum(native_train.squares(found, gradients[name]) for name, found in compiled.items())
    others = [g for name, g in gradients.items() if name not in compiled]
    if not others:
        return math.sqrt(squares)
    norms = [torch.linalg.vector_norm(g, dtype=_accumulate(g.dtype)) for g in others]
    return math.hypot(math.sqrt(squares), float(torch.linalg.vector_norm(torch.stack([n.double() for n in norms]))))


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def clip_factor(norm: float, most: float) -> float:
    """What gradients are multiplied with so that their norm is at most ``most``; 0 means no limit."""
    return 1.0 if most == 0.0 else min(1.0, most / (norm + 1e-6))


def named(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight and gradient, for watchers."""
    for name, gradient in gradients.items():
        yield name, parameters[name].detach(), gradient
