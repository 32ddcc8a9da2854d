"""Which layers an adapter sits on, by the names that PEFT and the hub use, and how it is put there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from tokenmill.adapt.layers import AdaptedEmbedding, AdaptedLinear, Adapter
from tokenmill.adapt.switch import Adapters
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.models import Model
from tokenmill.models.weights import Named, modules_by_name
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import LinearLayer
from tokenmill.nn.moe import MoE

NOT_LINEAR = ("head", "router", "head.out", "score")
"""Never part of ``all-linear``: PEFT leaves the output matrix out, and keeps routers in a layer of another kind."""


@dataclass(frozen=True)
class Place:
    """A linear layer as the hub names it, and our layers that make it up, in the order of its rows."""

    name: str
    ours: tuple[str, ...]
    transposed: bool
    """The hub keeps the weight [in, out] (GPT-2's Conv1D)."""


def switch_of(model: Model) -> Adapters:
    """The model's adapters; the first call creates the record."""
    if model.adapters is None:
        model.adapters = Adapters()
    assert isinstance(model.adapters, Adapters)
    return model.adapters


def linear_places(model: Model) -> list[Place]:
    """All linear layers of a model, adapted ones too, the output matrix and routers included."""
    modules = dict(model.network.named_modules())
    named = modules_by_name(model.network, model.family.weights)
    return [_place(n) for n in named if all(isinstance(modules[ours], LinearLayer) for ours in n.ours)]


def _place(named: Named) -> Place:
    return Place(named.theirs, named.ours, named.row.transposed)


def chosen_places(model: Model, config: AdapterConfig) -> list[Place]:
    """What ``targets`` and ``layers`` mean for this model; ConfigError where a target or a layer is nowhere."""
    places = linear_places(model)
    inner = [place for place in places if not place.ours[0].endswith(NOT_LINEAR)]
    experts = any(isinstance(module, MoE) for module in model.network.modules())
    if experts:
        inner = [place for place in inner if ".mlp." not in place.ours[0]]
    if config.targets != "all-linear":
        targets = [config.targets] if isinstance(config.targets, str) else config.targets
        leaves = {place.name.rpartition(".")[2] for place in places}
        for target in targets:
            if not any(matches(place.name, target) for place in places):
                near = did_you_mean(target, leaves)
                raise ConfigError(f"adapter.targets: {target!r} is no linear layer of this model{near}; "
                                  f"it has: {', '.join(sorted(leaves))}, or all-linear")  # fmt: skip
        inner = [place for place in places if any(matches(place.name, target) for target in targets)]
        if experts and any(".mlp." in place.ours[0] for place in inner):
            raise ConfigError("adapter.targets: in a mixture of experts adapters sit on attention only; experts are "
                              "stacked matrices, which PEFT's folders name in another way")  # fmt: skip
    elif config.kind == "ia3":
        inner = [place for place in inner if is_ia3_default(place)]
    if config.kind == "bottleneck":
        behind = BEHIND if config.bottleneck_at == "both" else BEHIND[1:]
        inner = [place for place in inner if place.ours[0].endswith(behind)]
        if not inner:
            raise ConfigError("bottleneck adapters sit behind attention and feed-forward output layers; the targets "
                              "name none of them")  # fmt: skip
    if config.layers is not None:
        count = model.network.config.num_layers
        if odd := [layer for layer in config.layers if not 0 <= layer < count]:
            raise ConfigError(f"adapter.layers: there is no layer {odd[0]}; this model has 0 to {count - 1}")
        inner = [place for place in inner if layer_of(place) in config.layers]
    return inner


BEHIND = ("attn.out", "mlp.down")
"""The last layer of a sublayer, behind which a bottleneck adapter works."""


def is_ia3_default(place: Place) -> bool:
    """Keys, values and the inner activation of the feed-forward part (Liu et al. 2022), fused ones as a whole."""
    return any(name.endswith(("attn.k", "attn.v", "mlp.down")) for name in place.ours)


def layer_of(place: Place) -> int | None:
    """The layer's number, None outside of layers."""
    found = re.search(r"layers\.(\d+)\.", place.ours[0])
    return int(found[1]) if found else None


def matches(name: str, target: str) -> bool:
    """PEFT's rule for lists: the module's name, or the end of it behind a dot."""
    return name == target or name.endswith("." + target)


def put(model: Model, ours: str, name: str, adapter: Adapter) -> None:
    """Give one of our layers an adapter; the layer is wrapped if it is not yet."""
    owner_name, _, leaf = ours.rpartition(".")
    owner, switch = model.network.get_submodule(owner_name), switch_of(model)
    module = getattr(owner, leaf)
    wrapped: AdaptedLinear | AdaptedEmbedding
    if isinstance(module, AdaptedLinear | AdaptedEmbedding):
        wrapped = module
    elif isinstance(module, Embedding):
        wrapped = AdaptedEmbedding(module, switch)
    elif isinstance(module, LinearLayer):
        wrapped = AdaptedLinear(module, switch)
    else:
        raise ConfigError(f"{ours} is a {type(module).__name__}; adapters sit on linear layers and embeddings")
    wrapped.train(module.training)
    adapter.train(module.training)
    wrapped.adapters[name] = adapter
    setattr(owner, leaf, wrapped)


def adapted(network: nn.Module, name: str) -> Iterator[tuple[str, Adapter]]:
    """Our layers that have an adapter of this name, with it."""
    for ours, module in network.named_modules():
        if isinstance(module, AdaptedLinear | AdaptedEmbedding) and name in module.adapters:
            adapter = module.adapters[name]
            assert isinstance(adapter, Adapter)
            yield ours, adapter


def shortest_targets(chosen: Iterable[str], all_names: Iterable[str]) -> list[str]:
    """Names that mean exactly these modules by PEFT's rule: last parts, or full names where those mean more."""
    wanted = set(chosen)
    leaves = {name.rpartition(".")[2] for name in wanted}
    reached = {name for name in all_names if any(matches(name, leaf) for leaf in leaves)}
    return sorted(leaves) if reached == wanted else sorted(wanted)
