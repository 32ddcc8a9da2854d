"""What is kept of a forward pass for its backward pass: cheap results never, what is in a layer only if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from tokenmill.ops.recompute import recompute_cheap


@contextmanager
def layers_recomputed(network: nn.Module) -> Iterator[None]:
    """Inside, a layer keeps its input alone and runs again in the backward pass: a third more work, the memory of one
    layer. Layers are the members of every ``ModuleList`` that is itself in none."""
    layers = list(_layers(network))
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def saving_memory(layers: bool) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a forward pass: recipes for cheap results, unless whole layers are recomputed anyway."""
    return nullcontext if layers else recompute_cheap
