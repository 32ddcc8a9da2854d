"""Loss, perplexity and bits per byte on held-out data, while a model is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.train.distributed import World
from tokenmill.train.objectives.base import Loss, Objective

NO_LABEL = -100


@dataclass(frozen=True)
class Evaluation:
    """Means over the counted tokens of all processes, in nats; ``bits_per_byte`` where bytes are known."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    seconds: float


@torch.no_grad()
def evaluate(
    network: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    *,
    device: torch.device,
    byte_lengths_V: Tensor | None = None,
    world: World | None = None,
) -> Evaluation:
    """Run the objective without gradients and without dropout. ``byte_lengths_V``: UTF-8 bytes of each token."""
    began, world = time.perf_counter(), world or World()
    nats = tokens = nbytes = 0.0
    training = network.training
    network.eval()
    try:
        for batch in batches:
            loss = objective(network, batch.to(device))
            nats += likelihood(loss)
            tokens += loss.count
            if byte_lengths_V is not None:
                labels_T = getattr(batch, "target", batch).labels_T
                nbytes += float(byte_lengths_V[labels_T[labels_T != NO_LABEL].cpu()].sum())
    finally:
        network.train(training)
    nats, tokens, nbytes = world.sum([nats, tokens, nbytes])
    mean = nats / tokens if tokens else math.nan
    bits = nats / math.log(2) / nbytes if nbytes else None
    perplexity = math.exp(min(mean, 700.0))
    return Evaluation(mean, perplexity, bits, int(tokens), time.perf_counter() - began)


def likelihood(loss: Loss) -> float:
    """The sum without what was added to it for training's sake."""
    return float(loss.sum.detach()) - loss.metrics.get("z_loss", 0.0)
