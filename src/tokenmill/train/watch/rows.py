"""Rows: what the loop tells, flat and with what follows from it (tokens a second, share of peak, memory).

Every sink gets the same rows, so a number is computed once and reads the same in a file, a tracker and on the screen.
A step's row has ``step loss lr grad_norm tokens valid_tokens total_tokens seconds tokens_per_s mfu memory_mb``, an
evaluation's ``step eval_loss eval_perplexity eval_bits_per_byte …``; what an objective adds stands under its own name
(``rewards/accuracies``, of an evaluation ``eval_rewards/accuracies``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch

from tokenmill.core.machine import process_memory
from tokenmill.train.flops import peak_flops, training_flops
from tokenmill.train.watch_protocol import EvalMetrics, RunEnd, RunStart, StepMetrics

Row = Mapping[str, Any]
Kind = Literal["step", "eval", "sample", "event"]


class Sink(Protocol):
    """Where rows go."""

    def start(self, run: RunStart) -> None:
        """Before the first row. Rows of steps past ``run.step`` that an earlier process left are no longer true."""

    def put(self, kind: Kind, row: Row) -> None:
        """One row, in order."""

    def end(self, end: RunEnd) -> None:
        """No more rows."""


class Meter:
    """Turns what the loop tells into rows."""

    def __init__(self, run: RunStart) -> None:
        recipe = run.recipe
        self.device = next(run.model.parameters()).device
        self.dtype = compute_dtype(run)
        self.peak_flops = peak_flops(self.device, self.dtype) * run.world_size
        self.flops_per_token = training_flops(run.model, recipe.seq_len or 512)

    def step(self, metrics: StepMetrics) -> dict[str, Any]:
        """The row of an optimiser step."""
        rate = metrics.tokens / metrics.seconds if metrics.seconds > 0 else 0.0
        row: dict[str, Any] = {
            "step": metrics.step,
            "loss": metrics.loss,
            "lr": metrics.lr,
            "grad_norm": metrics.grad_norm,
            "tokens": metrics.tokens,
            "valid_tokens": metrics.valid_tokens,
            "total_tokens": metrics.total_tokens,
            "seconds": metrics.seconds,
            "tokens_per_s": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops,
            "memory_mb": self.memory_mb(),
            **metrics.extra,
        }
        if metrics.skipped is not None:
            row["skipped"] = metrics.skipped
        return row

    def evaluation(self, metrics: EvalMetrics) -> dict[str, Any]:
        """The row of an evaluation."""
        row: dict[str, Any] = {
            "step": metrics.step,
            "eval_loss": metrics.loss,
            "eval_tokens": metrics.tokens,
            "eval_seconds": metrics.seconds,
            "best": metrics.best,
            **{f"eval_{name}": value for name, value in metrics.extra.items()},
        }
        if metrics.perplexity is not None:
            row["eval_perplexity"] = metrics.perplexity
        if metrics.bits_per_byte is not None:
            row["eval_bits_per_byte"] = metrics.bits_per_byte
        return row

    def memory_mb(self) -> float:
        """The most memory held so far, in 10^6 bytes: of the device, or of this process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return process_memory()[1] / 1e6


def compute_dtype(run: RunStart) -> torch.dtype:
    """What the run computes in: the recipe's, else the dtype of the weights."""
    name = run.recipe.dtype
    if name != "auto":
        return getattr(torch, name)
    return next(p.dtype for p in run.model.parameters() if p.is_floating_point())
