"""Tiny parts for the training loop: a model, batches of ragged documents, a source that can be told to misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import tiny
from tokenmill.data.batch import Batch, Sample
from tokenmill.models import read_config
from tokenmill.models.load import build
from tokenmill.nn.decoder import Decoder
from tokenmill.train.watch_protocol import EvalMetrics, Event, RunEnd, RunStart, StepMetrics, Watcher

SMALL = {**tiny.FAMILIES["llama-tied"], "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
VOCABULARY = 97


def decoder(dtype: torch.dtype = torch.float32, config: dict[str, Any] | None = None, seed: int = 0) -> Decoder:
    """A decoder with random weights, trainable."""
    network = build(read_config(config or SMALL, "tiny")[1])
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in list(network.named_parameters()):
        values = torch.randn(parameter.shape, generator=draw) * 0.1 + (1.0 if "norm" in name else 0.0)
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, torch.nn.Parameter(values.to(dtype)))
    return network


def document(index: int, longest: int = 24) -> Sample:
    """A document that follows a rule which can be learned; some of its labels are masked, at times all but one."""
    draw = np.random.default_rng(index)
    length = int(draw.integers(2, longest))
    tokens = (int(draw.integers(VOCABULARY)) + 3 * np.arange(length + 1)) % VOCABULARY
    labels = tokens[1:].copy()
    labels[: int(draw.integers(0, length))] = -100
    return Sample(index, tokens[:-1], labels)


class Documents:
    """A source: micro-batch ``i`` holds documents ``per_batch * i …``; ``change`` may spoil a batch."""

    def __init__(
        self, per_batch: int = 3, *, rank: int = 0, world: int = 1, change: Callable[[int, Batch], Batch] | None = None
    ) -> None:
        self.per_batch, self.rank, self.world = per_batch, rank, world
        self.change = change
        self.position = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            number = self.position + self.rank
            self.position += self.world
            batch = Batch.of([document(self.per_batch * number + i) for i in range(self.per_batch)])
            yield batch if self.change is None else self.change(number, batch)

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def load(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Recorder(Watcher):
    """Remembers everything it is told."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []
        self.evals: list[EvalMetrics] = []
        self.events: list[Event] = []
        self.starts: list[RunStart] = []
        self.ends: list[RunEnd] = []

    def on_start(self, run: RunStart) -> None:
        self.starts.append(run)

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def on_eval(self, metrics: EvalMetrics) -> None:
        self.evals.append(metrics)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_end(self, end: RunEnd) -> None:
        self.ends.append(end)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]
