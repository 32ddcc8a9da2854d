"""Where an optimiser keeps its running means: in float32, in bfloat16, or in 8 bits a value; here or in paged memory.

8 bits are those of Dettmers et al. 2022 ("8-bit Optimizers via Block-wise Quantization"), as bitsandbytes has them: a
block of 256 values is divided by its largest, and each becomes the nearest of 256 values that are dense near zero.

"Paged" (QLoRA) means that the state need not fit the device: on a CUDA device it lies in pinned host memory and passes
through the device a piece at a time; on a CPU it lies in a file mapped into memory, which the system writes out and
reads back when memory is short. The file has no name: nothing is left behind, not even after a kill.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from tokenmill.core.errors import StoreError

BLOCK = 256
SMALLEST_8BIT = 4096
"""Tensors with fewer values stay in float32, as in bitsandbytes: norms are few, and matter."""

Kind = Literal["float32", "bfloat16", "8bit"]
Allocate = Callable[[int, torch.dtype], Tensor]
"""A flat tensor of zeros."""


class Moment(Protocol):
    """A running mean of every weight of one parameter, flat, read and written a piece at a time."""

    def read(self, piece: slice, device: torch.device) -> Tensor:
        """Float32 values; may be a view that is changed in place."""
        ...

    def write(self, piece: slice, values: Tensor) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...


class PlainMoment:
    """Values as they are, in float32, float64 or bfloat16."""

    def __init__(self, size: int, dtype: torch.dtype, allocate: Allocate) -> None:
        self._flat = allocate(size, dtype)

    def read(self, piece: slice, device: torch.device) -> Tensor:
        part = self._flat[piece]
        return part.to(device, torch.float32 if part.dtype == torch.bfloat16 else part.dtype)

    def write(self, piece: slice, values: Tensor) -> None:
        part = self._flat[piece]
        if part.data_ptr() != values.data_ptr():
            part.copy_(values)

    def tensors(self) -> dict[str, Tensor]:
        return {"": self._flat}


class EightBitMoment:
    """A code a value and a scale a block. Pieces begin at multiples of :data:`BLOCK`."""

    def __init__(self, size: int, signed: bool, allocate: Allocate) -> None:
        self._codes = allocate(size, torch.uint8)
        self._scales = allocate(-(-size // BLOCK), torch.float32)
        self._signed = signed
        self._codes.fill_(int(codebook(signed).abs().argmin()))

    def read(self, piece: slice, device: torch.device) -> Tensor:
        codes, scales = self._codes[piece].to(device), self._scales[_blocks(piece)].to(device)
        values = codebook(self._signed).to(device).index_select(0, codes.to(torch.int32))
        return _by_block(values, lambda rows: rows.mul_(scales[:, None]))

    def write(self, piece: slice, values: Tensor) -> None:
        padded = _padded(values)
        scales = padded.abs().amax(-1)
        codes = encode(padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], self._signed)
        self._codes[piece] = codes.view(-1)[: len(values)].to(self._codes.device)
        self._scales[_blocks(piece)] = scales.to(self._scales.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self._codes, "scales": self._scales}


def moment(size: int, kind: Kind, *, signed: bool, allocate: Allocate, exact: torch.dtype = torch.float32) -> Moment:
    """A moment of ``size`` values; ``exact`` is what float32 means for this parameter (float64 for a float64 one)."""
    if kind == "8bit" and size >= SMALLEST_8BIT:
        return EightBitMoment(size, signed, allocate)
    return PlainMoment(size, torch.bfloat16 if kind == "bfloat16" else exact, allocate)


@cache
def codebook(signed: bool) -> Tensor:
    """The 256 values of bitsandbytes' dynamic map, rising: seven decades, each divided twice as finely as the last."""
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, steps + 1, dtype=torch.float32)
        middles = (10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def _nearest(signed: bool) -> Tensor:
    """The code of every float16 number, by its bits: a table is twenty times as fast as a search for the nearest."""
    numbers = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    values = codebook(signed)
    middles = (values[:-1] + values[1:]) / 2
    return torch.bucketize(numbers.nan_to_num(0.0), middles).to(torch.uint8)


def encode(values: Tensor, signed: bool) -> Tensor:
    """The codes of values from -1 to 1, rounded to float16 on the way: that moves only what lies between two codes."""
    index = values.half().view(torch.int16).to(torch.int32).view(-1) + 32768
    return _nearest(signed).to(values.device).index_select(0, index).view(values.shape)


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, -(-piece.stop // BLOCK))


def _padded(values: Tensor) -> Tensor:
    """[blocks, BLOCK], with zeros at the end."""
    missing = -len(values) % BLOCK
    return (torch.cat((values, values.new_zeros(missing))) if missing else values).view(-1, BLOCK)


def _by_block(values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    size = len(values)
    return change(_padded(values)).view(-1)[:size]


def in_memory(device: torch.device) -> Allocate:
    """State beside the weights."""
    return lambda size, dtype: torch.zeros(size, dtype=dtype, device=device)


def paged(device: torch.device, folder: Path) -> Allocate:
    """State in pinned host memory (CUDA) or in an unnamed file in ``folder`` (CPU)."""
    if device.type == "cuda":
        return lambda size, dtype: torch.zeros(size, dtype=dtype, pin_memory=True)
    return lambda size, dtype: _mapped(size, dtype, folder)


def _mapped(size: int, dtype: torch.dtype, folder: Path) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    nbytes = max(1, size * torch.empty((), dtype=dtype).element_size())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".paged-") as file:
        try:
            # A hole in the file would be found full only when it is touched, which kills the process
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            size_mb = math.ceil(nbytes / 1e6)
            raise StoreError(
                f"{folder}: no room for {size_mb} MB of paged optimiser state: {error.strerror}"
            ) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype)
