"""A recipe's adapter put on a model: the base frozen, the adapter's parameters made and initialised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenmill.adapt.layers import IA3, AdaptedEmbedding, AdaptedLinear, Adapter, Bottleneck, Rows, Whole
from tokenmill.adapt.lora import Dora, Lora, new_a
from tokenmill.adapt.places import Place, chosen_places, put, switch_of
from tokenmill.adapt.virtual import PrefixTokens, PromptTokens, prefix_of_text, put_virtual
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.models import Model
from tokenmill.models.weights import modules_by_name
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import LinearLayer


def adapt(
    model: Model,
    config: AdapterConfig,
    *,
    name: str = "default",
    seed: int = 0,
    init_tokens: Sequence[int] = (),
    new_tokens: Sequence[int] = (),
) -> None:
    """Freeze the model and put a new adapter on it, in place; it is on from now on, and its parameters are trainable.

    ``init_tokens``: the ids of ``config.init_text`` (prompt and prefix tuning), ids drawn by ``seed`` without them.
    ``new_tokens``: ids, within the vocabulary, whose rows are trained alone. Parameters are float32 whatever the base
    is in. ConfigError where the configuration does not fit the model.
    """
    if (new_tokens or config.train_also) and config.kind not in ("lora", "dora"):
        raise ConfigError(f"new tokens and train_also go with lora and dora, not with {config.kind}: PEFT's folders "
                          "keep them nowhere else")  # fmt: skip
    switch = switch_of(model)
    generator = torch.Generator().manual_seed(seed)
    model.network.requires_grad_(False)
    switch.add(name, config)
    try:
        if config.kind in ("prompt", "prefix"):
            _add_virtual(model, config, name, generator, init_tokens)
        else:
            for place in chosen_places(model, config):
                _add(model, config, name, place, generator)
        _train_rows(model, name, new_tokens)
        _train_whole(model, name, config)
    except Exception:
        remove_adapter(model, name)
        raise


def _add(model: Model, config: AdapterConfig, name: str, place: Place, generator: torch.Generator) -> None:
    layers = [model.network.get_submodule(ours) for ours in place.ours]
    a = None
    if config.kind in ("lora", "dora"):
        a = nn.Parameter(_on(model, new_a(config.rank, _linear(layers[0]).in_features, generator)))
    for ours, layer in zip(place.ours, layers, strict=True):
        put(model, ours, name, _new(config, model, place, ours, _linear(layer), a, generator))


def _new(
    config: AdapterConfig,
    model: Model,
    place: Place,
    ours: str,
    layer: LinearLayer,
    a: nn.Parameter | None,
    generator: torch.Generator,
) -> Adapter:
    size = layer.out_features
    if a is None and config.kind == "ia3":
        on_input = ours.endswith("mlp.down")
        return IA3(_on(model, torch.ones(layer.in_features if on_input else size)), on_input=on_input)
    if a is None:
        down = new_a(config.bottleneck_size, size, generator)
        return Bottleneck(_on(model, down), _on(model, torch.zeros(size, len(down))), config.dropout)
    b, scale = _on(model, torch.zeros(size, config.rank)), lora_scale(config)
    if config.kind == "lora":
        return Lora(a, b, scale, config.dropout)
    base = layer.base if isinstance(layer, AdaptedLinear) else layer
    return Dora(a, b, base.dense().float().norm(dim=1), scale, config.dropout)


def lora_scale(config: AdapterConfig) -> float:
    """What the product B A is multiplied with."""
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def _linear(layer: nn.Module) -> LinearLayer:
    assert isinstance(layer, LinearLayer)
    return layer


def _on(model: Model, tensor: Tensor) -> Tensor:
    return tensor.to(model.network.device)


def _add_virtual(
    model: Model, config: AdapterConfig, name: str, generator: torch.Generator, init_tokens: Sequence[int]
) -> None:
    decoder, count = model.decoder, config.virtual_tokens
    if init_tokens:
        ids = (list(init_tokens) * math.ceil(count / len(init_tokens)))[:count]
    else:
        ids = torch.randint(decoder.config.vocab_size, (count,), generator=generator).tolist()
    if config.kind == "prefix":
        put_virtual(decoder, switch_of(model), name, PrefixTokens(prefix_of_text(decoder, ids)))
    else:
        rows_PC = decoder.embed(torch.tensor(ids, device=decoder.device)).detach().float()
        put_virtual(decoder, switch_of(model), name, PromptTokens(rows_PC))


def _train_rows(model: Model, name: str, tokens: Sequence[int]) -> None:
    """Train these tokens' rows of the embedding, and of the output matrix where it is another."""
    if not tokens:
        return
    size = model.network.config.vocab_size
    if odd := [token for token in tokens if not 0 <= token < size]:
        raise ConfigError(
            f"new token {odd[0]} lies outside of the vocabulary of {size}: make the embedding larger first"
        )
    indices = torch.tensor(sorted(set(tokens)), device=model.network.device)
    for ours in ("embed", "head"):
        module = getattr(model.network, ours)
        if isinstance(module, Embedding | AdaptedEmbedding):
            put(model, ours, name, Rows(indices, module.weight.detach()[indices].float()))
        elif isinstance(module, LinearLayer):
            put(model, ours, name, Rows(indices, module.dense()[indices].float()))


def _train_whole(model: Model, name: str, config: AdapterConfig) -> None:
    """Trained copies of the modules in ``train_also``, by the hub's names."""
    named = modules_by_name(model.network, model.family.weights)
    leaves = {n.theirs.rpartition(".")[2]: n for n in named}
    for wanted in config.train_also:
        if wanted not in leaves:
            raise ConfigError(f"adapter.train_also: {wanted!r} is no module of this model"
                              f"{did_you_mean(wanted, leaves)}; it has: {', '.join(sorted(leaves))}")  # fmt: skip
        for found in (n for n in named if n.theirs.rpartition(".")[2] == wanted):
            put_copy(model, found.ours, name)


def put_copy(model: Model, ours: Sequence[str], name: str) -> None:
    """A trained copy of each of these modules; ConfigError where it is a norm, or a table with two uses."""
    for our in ours:
        module = model.network.get_submodule(our)
        if isinstance(module, Embedding):
            if model.network.config.tied_embeddings:
                raise ConfigError("the embedding of this model is its output matrix too: training a copy of one would "
                                  "untie them; train new tokens alone, or all weights")  # fmt: skip
            put(model, our, name, Whole(module.weight.detach().float().clone(), None))
        elif isinstance(module, LinearLayer):
            bias = None if module.bias is None else module.bias.detach().float().clone()
            put(model, our, name, Whole(module.dense().float().clone(), bias))
        else:
            raise ConfigError(f"adapter.train_also: {our} is neither a linear layer nor an embedding")


def remove_adapter(model: Model, name: str) -> None:
    """Take an adapter off again; layers without any are what they were."""
    switch, network = switch_of(model), model.network
    for ours, module in list(network.named_modules()):
        if isinstance(module, AdaptedLinear | AdaptedEmbedding) and name in module.adapters:
            del module.adapters[name]
            if not module.adapters:
                owner, _, leaf = ours.rpartition(".")
                setattr(network.get_submodule(owner), leaf, module.base)
    prompt = getattr(network, "prompt", None)
    if prompt is not None and name in prompt.adapters:
        del prompt.adapters[name]
        if not prompt.adapters:
            network.prompt = None
    switch.remove(name)


def learning_rates(model: Model) -> dict[str, float]:
    """Parameters whose learning rate is a multiple of the run's, by name: B of a LoRA+ adapter (arXiv 2402.12354)."""
    rates: dict[str, float] = {}
    for name, config in switch_of(model).configs.items():
        if config.kind in ("lora", "dora") and config.lora_plus != 1.0:
            suffix = f"adapters.{name}.b"
            rates |= {n: config.lora_plus for n, _ in model.network.named_parameters() if n.endswith(suffix)}
    return rates
