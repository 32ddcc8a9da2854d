"""Loss, perplexity and bits per byte on held-out data, while a model is trained; an objective's own measures too."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.train.distributed import World
from tokenmill.train.objectives.base import Loss, Metric, Most, Objective

NO_LABEL = -100


@dataclass(frozen=True)
class Evaluation:
    """Means over the counted tokens (or samples) of all processes, in nats; ``bits_per_byte`` where bytes are known."""

    loss: float
    perplexity: float | None
    """None where the loss is no likelihood of tokens."""
    bits_per_byte: float | None
    tokens: int
    """What was counted: tokens with a label, or samples."""
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The objective's own."""


@torch.no_grad()
def evaluate(
    network: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    *,
    device: torch.device,
    byte_lengths_V: Tensor | None = None,
    world: World | None = None,
    likelihood: bool = True,
) -> Evaluation:
    """Run the objective without gradients and without dropout.

    ``byte_lengths_V``: UTF-8 bytes of each token. ``likelihood``: the loss is one of tokens, so it has a perplexity.
    """
    began, world = time.perf_counter(), world or World()
    found, nbytes = Means(), 0.0
    training = network.training
    network.eval()
    try:
        for batch in batches:
            loss = objective(network, batch.to(device))
            found.add(loss, getattr(batch, "num_nll", 0))
            if byte_lengths_V is not None:
                labels_T = getattr(batch, "target", batch).labels_T
                nbytes += float(byte_lengths_V[labels_T[labels_T != NO_LABEL].cpu()].sum())
    finally:
        network.train(training)
    mean, metrics = found.over(world)
    tokens, nbytes = world.sum([float(found.count), nbytes])
    mean = mean if tokens else math.nan
    bits = mean * tokens / math.log(2) / nbytes if nbytes else None
    perplexity = math.exp(min(mean, 700.0)) if likelihood else None
    return Evaluation(mean, perplexity, bits, int(tokens), time.perf_counter() - began, metrics)


class Means:
    """Losses and metrics of several batches, added up until they are divided by their counts."""

    def __init__(self) -> None:
        self.count = 0
        self._loss, self._nll, self._num_nll = 0.0, 0.0, 0
        self._sums: dict[str, list[float]] = {}
        self._most: dict[str, float] = {}

    def add(self, loss: Loss, num_nll: int) -> None:
        """One batch more."""
        self.count += loss.count
        # without what was added to it for training's sake
        self._loss += float(loss.sum.detach()) - _value(loss.metrics.get("z_loss", 0.0))
        if loss.nll is not None:
            self._nll += float(loss.nll.detach())
            self._num_nll += num_nll
        for name, value in loss.metrics.items():
            if isinstance(value, Most):
                self._most[name] = max(value.value, self._most.get(name, -math.inf))
                continue
            total, count = value if isinstance(value, tuple) else (value, float(loss.count))
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += count

    def over(self, world: World) -> tuple[float, dict[str, float]]:
        """The mean loss and metrics of all processes. One may have had no batch: the first always had one."""
        names = world.same_text("\n".join(sorted(self._sums))).split()
        flat = [value for name in names for value in self._sums.get(name, (0.0, 0.0))]
        loss, count, nll, num_nll, *flat = world.sum([self._loss, float(self.count), self._nll, self._num_nll, *flat])
        means = {name: flat[2 * i] / max(flat[2 * i + 1], 1.0) for i, name in enumerate(names)}
        most = world.same_text("\n".join(sorted(self._most))).split()
        means |= {name: world.most(self._most.get(name, -math.inf)) for name in most}
        return loss / max(count, 1.0) + nll / max(num_nll, 1.0), means


def _value(metric: Metric) -> float:
    return metric[0] if isinstance(metric, tuple) else metric.value if isinstance(metric, Most) else metric
