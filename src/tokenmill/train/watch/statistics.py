"""Norms of weights, gradients and updates, by kind of layer and by depth.

The ratio of update to weight says more than the loss of whether a learning rate suits: about 1e-3 a step is healthy,
and a kind of layer that stands at 1e-1 or 1e-6 is the one to look at. Names of rows: ``grad_norm/attn``,
``weight_norm/mlp``, ``update_ratio/layer.03``.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from tokenmill.train.watch_protocol import Gradients

SAMPLE = 4096
"""Weights of each tensor that the update ratio is taken from: a copy of every weight would double their memory."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks?)\.(\d+)\.")


class Statistics:
    """Looks at gradients before a step and at weights before and after it, every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._row: dict[str, float] = {}
        self._before: list[tuple[list[str], Tensor, Tensor]] = []

    def gradients(self, step: int, gradients: Gradients) -> None:
        """Take norms, and remember some weights of each tensor. Costs one pass over weights and gradients."""
        self._row, self._before = {}, []
        if not self._every or step % self._every:
            return
        grads: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        for name, weight, gradient in gradients():
            groups = groups_of(name)
            grad_square = float(gradient.detach().float().pow(2).sum())
            weight_square = float(weight.detach().float().pow(2).sum())
            for group in groups:
                grads[group] += grad_square
                weights[group] += weight_square
            live = _sample(weight)
            self._before.append((groups, live, live.clone()))
        self._row = {f"grad_norm/{group}": math.sqrt(square) for group, square in grads.items()}
        self._row |= {f"weight_norm/{group}": math.sqrt(square) for group, square in weights.items()}

    def after_step(self) -> dict[str, Any]:
        """What the step that was looked at adds to its row; empty for all others."""
        moved: dict[str, float] = defaultdict(float)
        size: dict[str, float] = defaultdict(float)
        for groups, live, before in self._before:
            moved_square = float((live.float() - before.float()).pow(2).sum())
            size_square = float(before.float().pow(2).sum())
            for group in groups:
                moved[group] += moved_square
                size[group] += size_square
        ratios = {f"update_ratio/{g}": math.sqrt(moved[g] / size[g]) for g in moved if size[g] > 0}
        row, self._row, self._before = self._row | ratios, {}, []
        return row


def groups_of(name: str) -> list[str]:
    """The kinds a parameter counts among: what it is (embed, attn, mlp, norm, head, adapter), and its layer.

    Examples: ``layers.3.attn.q.weight`` -> attn, layer.03; ``layers.0.mlp.up.lora_a.default`` -> adapter, layer.00.
    """
    layer = _LAYER.search(name)
    depth = [f"layer.{int(layer[1]):02}"] if layer else []
    parts = name.lower().split(".")
    if any(word in part for part in parts for word in ("lora", "ia3", "prefix", "prompt", "bottleneck", "magnitude")):
        return ["adapter", *depth]
    for word, kind in (("norm", "norm"), ("attn", "attn"), ("mlp", "mlp"), ("head", "head"), ("embed", "embed")):
        if any(word in part for part in parts):
            return [kind, *depth]
    return ["other", *depth]


def _sample(weight: Tensor) -> Tensor:
    """A view of at most about SAMPLE entries, spread over the tensor."""
    flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach()
    with torch.no_grad():
        return flat[:: max(1, len(flat) // SAMPLE)]
