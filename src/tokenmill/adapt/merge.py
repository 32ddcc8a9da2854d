"""An adapter folded into its base for good: afterwards the model is a plain one that any program loads."""

from __future__ import annotations

import torch
from torch import nn

from tokenmill.adapt.layers import AdaptedEmbedding, AdaptedLinear
from tokenmill.adapt.note import TRAINED_OVER
from tokenmill.adapt.places import switch_of
from tokenmill.core.errors import ConfigError
from tokenmill.models import Model
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear, LinearLayer


def merge_adapter(model: Model) -> int:
    """Fold the active adapters into the weights, in place, and take all adapters off; returns how many layers changed.

    A quantised layer becomes a plain one of its dequantised weight, which is what the adapter was trained on: merged
    into the original weight, it would correct errors that are not there (peft #2105). Everything that cannot be folded
    is found before a weight is touched (ConfigError).
    """
    switch, network = switch_of(model), model.network
    check_mergeable(model)
    changed = 0
    for ours, module in list(network.named_modules()):
        if isinstance(module, AdaptedLinear):
            changed += bool(module.on())
            _replace(network, ours, _plain(module))
        elif isinstance(module, AdaptedEmbedding):
            table = Embedding.__new__(Embedding)
            nn.Module.__init__(table)
            table.weight = nn.Parameter(module.weight.detach().to(module.base.weight.dtype), requires_grad=False)
            _replace(network, ours, table.train(module.training))
            changed += 1
    for ours, module in list(network.named_modules()):
        if isinstance(module, LinearLayer) and module.quantization in TRAINED_OVER:
            _replace(network, ours, _linear(module.dense(), module.bias, module.training))
    if getattr(network, "prompt", None) is not None:
        network.prompt = None
    for name in list(switch.configs):
        switch.remove(name)
    return changed


def check_mergeable(model: Model) -> None:
    """ConfigError naming the reason where an active adapter is of a kind that no weight can hold."""
    switch = switch_of(model)
    for name in switch.active:
        kind = switch.configs[name].kind
        if kind in UNMERGEABLE:
            raise unmergeable(repr(name), kind)
    if len(switch.active) > 1 and any(switch.configs[name].kind == "ia3" for name in switch.active):
        raise ConfigError("an IA3 adapter can only be merged alone: with others the order of folding would matter")


UNMERGEABLE = {
    "prompt": "it is learned input, not a change of weights",
    "prefix": "it is learned keys and values, not a change of weights",
    "bottleneck": "it computes something of its own behind a layer, which no weight of the base computes",
}


def unmergeable(name: str, kind: str) -> ConfigError:
    """The refusal of an adapter of a kind that no weight can hold."""
    return ConfigError(f"adapter {name} ({kind}) cannot be merged: {UNMERGEABLE[kind]}; keep it beside the model, "
                       "as tokenmill run --adapter does")  # fmt: skip


def _plain(module: AdaptedLinear) -> Linear:
    dtype = module.base.dense().dtype
    weight_OI, bias_O = module.folded()
    return _linear(weight_OI.to(dtype), bias_O, module.training)


def _linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, training: bool) -> Linear:
    with torch.device("meta"):
        layer = Linear(weight_OI.shape[1], weight_OI.shape[0], bias_O is not None)
    layer.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias_O is not None:
        layer.bias = nn.Parameter(bias_O.detach().to(weight_OI.dtype), requires_grad=False)
    return layer.train(training)


def _replace(network: nn.Module, ours: str, module: nn.Module) -> None:
    owner, _, leaf = ours.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
