"""Data parallelism: every process has the whole model and its share of a step's micro-batches; gradients are summed.

Summed, not averaged: each process has already divided its loss by the valid tokens of all of them (see ``loop.py``).
Started by ``torchrun --nproc-per-node N -m tokenmill train …``; without it there is one process and nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BUCKET_VALUES = 1 << 23
"""Gradients are sent in buckets of 32 MB: a message a tensor would cost more than the tensors."""


@dataclass(frozen=True)
class World:
    """The processes of this run, and which of them this is."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=_message_device())
        torch.distributed.all_reduce(together)
        return together.tolist()

    def most(self, value: float) -> float:
        """The largest over all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64, device=_message_device())
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return float(largest)

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, which must give the same ones in the same order."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and (
                tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_VALUES
            ):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _sum_bucket(bucket)

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank, everywhere."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(said, value)
        return said

    def same_text(self, text: str) -> str:
        """What the first process says, everywhere."""
        if self.size == 1:
            return text
        said = torch.zeros(4096, dtype=torch.uint8, device=_message_device())
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        said[: len(encoded)] = encoded.to(said.device)
        torch.distributed.broadcast(said, 0)
        return bytes(said[said != 0].tolist()).decode()

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            torch.distributed.barrier()


def _sum_bucket(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _message_device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, connected for as long as the block lasts; one without torchrun.

    A process group that is there already is used and left as it is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    ours = not torch.distributed.is_initialized()
    if ours:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        if ours:
            torch.distributed.destroy_process_group()
