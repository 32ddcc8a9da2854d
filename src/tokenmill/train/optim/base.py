"""What every optimiser is: named parameters with state, one step at a time, and flat tensors for checkpoints.

Not torch's ``Optimizer``: its state goes by position and is pickled, and it cannot take weights a piece at a time.
Gradients may come in any dtype and are scaled as they are read (clipping and the loss scale cost no pass of their own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.core.errors import FormatError
from tokenmill.train.optim.moments import Allocate, Kind, Moment, in_memory, moment
from tokenmill.train.optim.weights import Weights, weights_of

PIECE = 1 << 17
"""Values that a CPU takes through all of an update together: they stay in its cache. A multiple of a block."""


@dataclass(frozen=True)
class Group:
    """What differs between parameters."""

    lr_scale: float = 1.0
    """Times the step's learning rate (LoRA+)."""
    weight_decay: float = 0.0
    matrix: bool = False
    """A hidden matrix: what Muon is for."""


class ParameterState:
    """The exact weight of one parameter and its moments."""

    def __init__(self, parameter: nn.Parameter, group: Group, moments: Mapping[str, Moment]) -> None:
        self.parameter, self.group, self.moments = parameter, group, dict(moments)
        self.weights: Weights = weights_of(parameter)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in self.weights.tensors().items():
            yield key, tensor
        for name, kept in self.moments.items():
            for key, tensor in kept.tensors().items():
                yield f"{name}.{key}" if key else name, tensor


Gradients = Mapping[str, Tensor]


class Optimizer:
    """Base class. ``parameters``: by name; one that is in no mapping of groups has a plain :class:`Group`.

    ``moments``: how running means are kept; ``allocate``: where. A subclass says what state a parameter has and how it
    is stepped.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        groups: Mapping[str, Group],
        *,
        moments: Kind | None = None,
        allocate: Callable[[torch.device], Allocate] = in_memory,
    ) -> None:
        self.steps = 0
        self._kind, self._allocate = moments, allocate
        self.states = {
            name: ParameterState(parameter, group, self._moments(parameter, group))
            for name, parameter in parameters.items()
            for group in [groups.get(name, Group())]
        }

    def _moments(self, parameter: nn.Parameter, group: Group) -> dict[str, Moment]:
        raise NotImplementedError

    def _step(self, state: ParameterState, gradient: Tensor, lr: float, scale: float) -> None:
        raise NotImplementedError

    def _moment(self, parameter: nn.Parameter, *, signed: bool, kind: Kind, size: int | None = None) -> Moment:
        exact = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        size = parameter.numel() if size is None else size
        return moment(size, kind, signed=signed, allocate=self._allocate(parameter.device), exact=exact)

    @torch.no_grad()
    def step(self, gradients: Gradients, lr: float, scale: float = 1.0) -> None:
        """Update every parameter that has a gradient. ``scale``: what gradients are to be multiplied with first."""
        self.steps += 1
        for name, state in self.states.items():
            gradient = gradients.get(name)
            if gradient is not None:
                self._step(state, gradient, lr * state.group.lr_scale, scale)

    def tensors(self) -> dict[str, Tensor]:
        """All state, flat, under ``parameter/key``; the tensors themselves, not copies."""
        return {f"{name}/{key}": t for name, state in self.states.items() for key, t in state.tensors()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int, source: Any = "checkpoint") -> None:
        """Take over what :meth:`tensors` gave; FormatError where it is not the state of this optimiser."""
        mine = self.tensors()
        if mine.keys() != tensors.keys():
            odd = sorted(mine.keys() ^ tensors.keys())
            raise FormatError(source, odd[0], "the optimiser's state is of another optimiser or model")
        for name, tensor in mine.items():
            if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
                raise FormatError(source, name, f"is {tensors[name].dtype} {list(tensors[name].shape)}")
            tensor.copy_(tensors[name])
        self.steps = steps


def pieces(parameter: Tensor) -> Iterator[slice]:
    """Slices of a flat parameter: cache-sized ones on a CPU, one elsewhere."""
    size = parameter.numel()
    length = PIECE if parameter.device.type == "cpu" else max(size, 1)
    for begin in range(0, size, length):
        yield slice(begin, min(begin + length, size))


def wide(gradient: Tensor, scale: float) -> Tensor:
    """A gradient in float32 (or float64), scaled; a copy wherever that changes anything."""
    values = gradient.to(torch.float64 if gradient.dtype == torch.float64 else torch.float32)
    if scale == 1.0:
        return values
    return values * scale if values.data_ptr() == gradient.data_ptr() else values.mul_(scale)
