"""What the loop tells those who watch it: progress bars, metric files, trackers, reports (``train/watch``).

A :class:`Watcher` never changes a run. Only the first process of a distributed run has any. An exception in a watcher
ends the run like any other: one that talks to a network catches its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Gradients = Callable[[], Iterator[tuple[str, Tensor, Tensor]]]
"""Call it for the name, weight and gradient of every trainable parameter; lazily, as it costs a pass over them."""


@dataclass(frozen=True)
class RunStart:
    """A run begins, or goes on."""

    folder: Path
    recipe: Any
    """The validated recipe (``config.recipe.Recipe``)."""
    model: nn.Module
    step: int
    """Steps already done: 0, or those of the checkpoint; a metrics file is to be cut behind it."""
    tokens: int
    """Tokens already seen."""
    total_steps: int
    tokens_per_step: int
    """As planned, of all processes; with a ramp that of the end."""
    trainable: int
    """Number of weights that are trained."""
    world_size: int = 1


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step, over all micro-batches and processes."""

    step: int
    """From 1 on: the step that was just done."""
    loss: float
    """Mean over the step's valid tokens, in nats; over its samples where answers are compared."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Tokens of this step, with and without a loss."""
    valid_tokens: int
    total_tokens: int
    """Since the beginning of the run."""
    seconds: float
    skipped: str | None = None
    """Why the update was left out (``"not finite"``, ``"spike"``, ``"overflow"``), None when it was made."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """The objective's own metrics, the loss scale, the time of a checkpoint …"""


@dataclass(frozen=True)
class EvalMetrics:
    """An evaluation on held-out data."""

    step: int
    loss: float
    perplexity: float | None
    """None where the loss is no likelihood of tokens (preferences, rewards)."""
    bits_per_byte: float | None
    """None where the data does not say how many bytes its tokens stand for."""
    tokens: int
    seconds: float
    best: bool
    """Lower than every evaluation before."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """The objective's own measures."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote while it was trained."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Event:
    """Something that a person wants to know: a spike, a rollback, a checkpoint, a batch that was left out."""

    step: int
    kind: str
    """``spike``, ``rollback``, ``not finite``, ``overflow``, ``checkpoint``, ``signal``, ``early stop``, ``reference``,
    ``warning``"""
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEnd:
    """The run is over, or was stopped and can go on."""

    step: int
    reason: str
    """``finished``, ``early stop``, ``stopped`` (a signal; it resumes) or ``failed``."""
    metrics: Mapping[str, float]
    model: Path | None
    """Where the trained model or adapter was written; None when the run was stopped."""


class Watcher:
    """Base of all watchers: override what is of interest."""

    def on_start(self, run: RunStart) -> None:
        """Before the first step."""

    def on_gradients(self, step: int, gradients: Gradients) -> None:
        """Gradients of a step are complete, summed over processes and not yet clipped."""

    def on_step(self, metrics: StepMetrics) -> None:
        """An optimiser step was done, or left out."""

    def on_eval(self, metrics: EvalMetrics) -> None:
        """An evaluation was done."""

    def on_sample(self, sample: Sample) -> None:
        """The model wrote a sample."""

    def on_event(self, event: Event) -> None:
        """Something happened that a person wants to know."""

    def on_end(self, end: RunEnd) -> None:
        """Always the last call, after a failure too."""


class Watchers(Watcher):
    """Several watchers as one, told in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def on_start(self, run: RunStart) -> None:
        for watcher in self.watchers:
            watcher.on_start(run)

    def on_gradients(self, step: int, gradients: Gradients) -> None:
        for watcher in self.watchers:
            watcher.on_gradients(step, gradients)

    def on_step(self, metrics: StepMetrics) -> None:
        for watcher in self.watchers:
            watcher.on_step(metrics)

    def on_eval(self, metrics: EvalMetrics) -> None:
        for watcher in self.watchers:
            watcher.on_eval(metrics)

    def on_sample(self, sample: Sample) -> None:
        for watcher in self.watchers:
            watcher.on_sample(sample)

    def on_event(self, event: Event) -> None:
        for watcher in self.watchers:
            watcher.on_event(event)

    def on_end(self, end: RunEnd) -> None:
        for watcher in self.watchers:
            watcher.on_end(end)
