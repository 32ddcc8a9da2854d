"""Narrower layers: neurons of the feed-forward part and groups of attention heads that say least are taken out.

A neuron's importance is the mean of its activation's size times the norm of the column that it is multiplied with, a
group's the same of the head's outputs (Minitron, Muralidharan 2024, 2407.14679, takes activations alone). A group is a
key/value head with the query heads that share it. Every layer keeps as many as the others, which is what one
configuration can say; which ones differs. Axes: F neurons · K groups · D head size · T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.models.load import Model, build, read_config
from tokenmill.models.walk import walk
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.nn.mlp import MLP

Progress = Callable[[int, int], None]


@torch.no_grad()
def narrow(
    model: Model,
    documents: Sequence[Tensor],
    *,
    mlp_size: int | None = None,
    kv_heads: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """The model with ``mlp_size`` neurons and ``kv_heads`` groups of heads in every layer; None keeps all.

    UsageError for sizes that are none or take nothing; ConfigError for a family whose layers differ, or whose
    feed-forward part is a mixture of experts.
    """
    layers = model.decoder.config.layers
    if len({(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in layers}) > 1:
        raise ConfigError("the layers of this model have heads of different kinds: its heads cannot be taken out")
    heads, groups = layers[0].attention.num_heads, layers[0].attention.num_kv_heads
    if any(not isinstance(getattr(block, "mlp", None), MLP) for block in model.decoder.layers):
        raise ConfigError("experts of a mixture cannot be narrowed")
    size = getattr(layers[0].mlp, "size", 0)
    for what, given, most in (("mlp_size", mlp_size, size), ("kv_heads", kv_heads, groups)):
        if given is not None and not 0 < given < most:
            raise UsageError(f"{what}={given}: a number from 1 to {most - 1} takes something away")
    if mlp_size is None and kv_heads is None:
        raise UsageError("say what is to be narrower: mlp_size, kv_heads or both")
    new = _shell(model, mlp_size or size, kv_heads or groups, heads // groups)
    for step in walk(model.decoder, documents):
        target = new.decoder.layers[step.index]
        assert isinstance(target, Block)
        sums = {"mlp.down": torch.zeros(size), "attn.out": torch.zeros(step.block.attn.out.in_features)}

        step.watch({name: partial(_add, total_I) for name, total_I in sums.items()})
        _fill(target, step.block, sums, mlp_size or size, kv_heads or groups)
        if progress is not None:
            progress(step.index + 1, len(layers))
    return new


def _add(total_I: Tensor, x_TI: Tensor) -> None:
    total_I += x_TI.float().abs().sum(0).cpu()


def _shell(model: Model, mlp_size: int, kv_heads: int, group: int) -> Model:
    """The narrower model without its layers' weights; what is outside of layers is shared with the old one."""
    attention = model.decoder.config.layers[0].attention
    config: dict[str, Any] = dict(model.config)
    if "intermediate_size" not in config or "num_attention_heads" not in config:
        raise ConfigError(f"configurations of {model.family.name} do not say the widths that would change")
    config |= {"intermediate_size": mlp_size}
    if kv_heads != attention.num_kv_heads:
        config |= {"num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads}
        config |= {"head_dim": attention.head_dim}  # no longer the share of the hidden size
    family, ours = read_config(config, "the narrowed model")
    found = ours.layers[0]
    if found.attention.head_dim != attention.head_dim or found.attention.scale != attention.scale:
        raise ConfigError(f"configurations of {family.name} cannot say a head size of its own: heads stay")
    network = build(ours)
    for name, parameter in model.decoder.named_parameters():
        if not name.startswith("layers."):
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, nn.Parameter(parameter.detach(), requires_grad=False))
    return Model(network, family, config, dict(model.generation_config))


def _fill(target: Block, source: Block, sums: dict[str, Tensor], mlp_size: int, kv_heads: int) -> None:
    """Give a layer the rows and columns of the old one that matter most, in their order."""
    attention = source.attn.config
    assert isinstance(source.mlp, MLP)
    neurons_F = _most(sums["mlp.down"] * source.mlp.down.weight.float().norm(dim=0).cpu(), mlp_size)
    said_I = sums["attn.out"] * source.attn.out.weight.float().norm(dim=0).cpu()
    groups_K = _most(said_I.view(attention.num_kv_heads, -1).sum(1), kv_heads)
    keys = _spans(groups_K, attention.head_dim)
    queries = _spans(groups_K, attention.head_dim * attention.num_heads // attention.num_kv_heads)
    rows = {"attn.q": queries, "attn.k": keys, "attn.v": keys, "mlp.gate": neurons_F, "mlp.up": neurons_F}
    columns = {"attn.out": queries, "mlp.down": neurons_F}
    for name, module in source.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            values = parameter.detach()
            if name in rows:
                values = values[rows[name].to(values.device)]
            elif name in columns and leaf == "weight":
                values = values[:, columns[name].to(values.device)]
            setattr(target.get_submodule(name), leaf, nn.Parameter(values.contiguous(), requires_grad=False))
    for name in (*rows, *columns):
        if isinstance(layer := _found(target, name), Linear):
            layer.out_features, layer.in_features = layer.weight.shape


def _found(block: Block, name: str) -> nn.Module | None:
    owner, _, leaf = name.rpartition(".")
    return getattr(block.get_submodule(owner), leaf)


def _most(importance: Tensor, count: int) -> Tensor:
    return importance.topk(count).indices.sort().values


def _spans(groups_K: Tensor, width: int) -> Tensor:
    """The rows of whole groups."""
    return (groups_K[:, None] * width + torch.arange(width)).flatten()
