"""Adapter folders in PEFT's layout, and llama.cpp's GGUF adapters, loaded onto a model (``save.py`` writes them).

An adapter names modules as the hub names them; the family's weight table says which of ours that is, fused ones
included. What a folder holds and we do not do is refused by name, before a layer is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenmill.adapt.build import put_copy, remove_adapter
from tokenmill.adapt.gguf import gguf_products
from tokenmill.adapt.layers import IA3, Adapter, Bottleneck, Rows
from tokenmill.adapt.lora import Dora, Lora
from tokenmill.adapt.peft_config import TENSORS, StoredConfig, read_config
from tokenmill.adapt.places import Place, linear_places, put, switch_of
from tokenmill.adapt.virtual import PrefixTokens, PromptTokens, prefix_shape, put_virtual
from tokenmill.core.errors import FormatError, did_you_mean
from tokenmill.formats import open_tensors
from tokenmill.models import Model
from tokenmill.models.weights import modules_by_name

PREFIX = "base_model.model."
PARTS = r"lora_A|lora_B|lora_magnitude_vector|ia3_l|bottleneck_down|bottleneck_up|token_adapter\.trainable_tokens_delta"
KEY = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+?)(\.(?P<part>{PARTS}))?(\.default)?(?P<leaf>\.weight|\.bias)?")
Parts = dict[str, dict[str, Tensor]]


def load_adapter(model: Model, path: Path | str, name: str = "default", *, trainable: bool = False) -> int:
    """Put an adapter on a model: a PEFT folder, or a GGUF file as llama.cpp makes it; it is on from now on.

    ``trainable``: to train on; the base is frozen then. Returns how many modules (as the hub counts them) it changes.
    Raises ConfigError for what we do not do, FormatError for a broken file or an adapter of another model.
    """
    path = Path(path)
    if path.is_dir():
        stored = read_config(path)
        file = open_tensors(path / TENSORS)
        tensors = {key: file.load(key, torch.float32).to(model.network.device) for key in file.infos()}
    else:
        stored, tensors = gguf_products(model, path)
    if trainable:
        model.network.requires_grad_(False)
    switch_of(model).add(name, stored.config)
    try:
        count = _put_all(model, path, name, stored, tensors)
    except Exception:
        remove_adapter(model, name)
        raise
    if not trainable:  # this adapter alone: another may be in training beside it
        for parameter_name, parameter in model.network.named_parameters():
            if f".adapters.{name}." in f".{parameter_name}":
                parameter.requires_grad_(False)
    return count


def _put_all(model: Model, path: Path, name: str, stored: StoredConfig, tensors: Mapping[str, Tensor]) -> int:
    if stored.config.kind in ("prompt", "prefix"):
        return _put_virtual(model, path, name, stored, tensors)
    parts = _by_module(path, tensors)
    places = {place.name: place for place in linear_places(model)}
    named = {n.theirs: n for n in modules_by_name(model.network, model.family.weights)}
    problems = []
    for module, found in parts.items():
        if module not in named:
            problems.append(f"{module}: this model has no such module{did_you_mean(module, named)}")
            continue
        try:
            if not found.keys() & {"weight", "bias", "tokens"}:
                if module not in places:
                    raise ValueError("is no linear layer of this model")
                for ours, adapter in _adapters(model, places[module], found, stored):
                    put(model, ours, name, adapter)
            else:
                _put_trained(model, named[module].ours, name, found, module, stored)
        except ValueError as error:
            problems.append(f"{module}: {error}")
    trained = {module.rpartition(".")[2] for module, found in parts.items() if found.keys() & {"weight", "bias"}}
    if missing := set(stored.config.train_also) - trained:
        problems.append(f"modules_to_save names {', '.join(sorted(missing))}, and the file has no weight of it")
    if stored.token_indices and not any("tokens" in found for found in parts.values()):
        problems.append("trainable_token_indices names tokens, and the file has no rows for them")
    if not parts:
        problems.append("has no tensors")
    if problems:
        raise FormatError(path, "tensors", "do not fit the model:\n  " + "\n  ".join(problems[:20]))
    return len(parts)


def _by_module(path: Path, tensors: Mapping[str, Tensor]) -> Parts:
    parts: Parts = {}
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None or (found["part"] is None and found["leaf"] is None):
            raise FormatError(path, key, "is not part of an adapter that we know")
        part = (found["part"] or "").replace("token_adapter.trainable_tokens_delta", "tokens")
        bias = found["leaf"] == ".bias"
        leaf = part + ("_bias" if bias else "") if part else ("bias" if bias else "weight")
        parts.setdefault(found["module"], {})[leaf] = tensor
    return parts


def _adapters(
    model: Model, place: Place, parts: Mapping[str, Tensor], stored: StoredConfig
) -> list[tuple[str, Adapter]]:
    """The adapters of a module's layers, one each; ValueError where the tensors do not fit."""
    layers = [model.network.get_submodule(ours) for ours in place.ours]
    sizes = [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
    inputs = int(layers[0].in_features)  # type: ignore[arg-type]
    kind = stored.config.kind
    made: list[Adapter]
    if kind in ("lora", "dora"):
        made = _loras(place.name, parts, stored, sizes, inputs)
    elif kind == "ia3":
        on_input = stored.on_input(place.name)
        _check(parts, {"ia3_l": None})
        factor = parts["ia3_l"].flatten()
        if len(factor) != (inputs if on_input else sum(sizes)):
            raise ValueError(f"has {len(factor)} factors, and the layer {inputs} inputs and {sum(sizes)} outputs")
        made = [IA3(f.clone(), on_input=on_input) for f in ([factor] * len(sizes) if on_input else factor.split(sizes))]
    else:
        size, out = stored.config.bottleneck_size, sum(sizes)
        shapes = {"bottleneck_down": (size, out), "bottleneck_down_bias": (size,)}
        _check(parts, {**shapes, "bottleneck_up": (out, size), "bottleneck_up_bias": (out,)})
        narrow = Bottleneck(parts["bottleneck_down"], parts["bottleneck_up"], stored.config.dropout)
        narrow.down_bias.data, narrow.up_bias.data = parts["bottleneck_down_bias"], parts["bottleneck_up_bias"]
        made = [narrow]
    return list(zip(place.ours, made, strict=True))


def _loras(
    module: str, parts: Mapping[str, Tensor], stored: StoredConfig, sizes: list[int], inputs: int
) -> list[Adapter]:
    rank, out = stored.rank_of(module), sum(sizes)
    a, b = parts.get("lora_A"), parts.get("lora_B")
    if a is None or b is None:
        raise ValueError("has only one of lora_A and lora_B")
    if a.ndim != 2 or b.ndim != 2 or not a.numel() or not b.numel():
        raise ValueError(f"A {list(a.shape)} and B {list(b.shape)} should be matrices")
    if a.shape[0] != rank:
        raise ValueError(f"has rank {a.shape[0]}, its configuration says {rank}")
    if (b.shape[0], a.shape[1]) != (out, inputs) or b.shape[1] != rank:
        raise ValueError(f"A {list(a.shape)} and B {list(b.shape)} do not make {[out, inputs]}")
    shared, scale, dropout = nn.Parameter(a), stored.scale(module), stored.config.dropout
    if stored.config.kind == "lora":
        _check(parts, {"lora_A": None, "lora_B": None})
        return [Lora(shared, part.clone(), scale, dropout) for part in b.split(sizes)]
    _check(parts, {"lora_A": None, "lora_B": None, "lora_magnitude_vector": (out,)})
    rows = zip(b.split(sizes), parts["lora_magnitude_vector"].split(sizes), strict=True)
    return [Dora(shared, part.clone(), magnitude.clone(), scale, dropout) for part, magnitude in rows]


def _check(parts: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...] | None]) -> None:
    if parts.keys() != wanted.keys():
        raise ValueError(f"has {', '.join(sorted(parts))} where {', '.join(sorted(wanted))} belong")
    for part, shape in wanted.items():
        if shape is not None and tuple(parts[part].shape) != shape:
            raise ValueError(f"{part} is {list(parts[part].shape)}, not {list(shape)}")


def _put_trained(
    model: Model, ours: tuple[str, ...], name: str, parts: Mapping[str, Tensor], module: str, stored: StoredConfig
) -> None:
    """New tokens' rows, or a module that was trained whole."""
    if "tokens" in parts:
        _check(parts, {"tokens": None})
        indices = stored.token_indices
        if isinstance(indices, dict):
            indices = next((v for key, v in indices.items() if module == key or module.endswith("." + key)), None)
        values = parts["tokens"]
        table = model.network.get_submodule(ours[0]).weight
        if not isinstance(indices, list) or values.shape != (len(indices), table.shape[1]):  # type: ignore[index]
            raise ValueError("its rows are not those that trainable_token_indices names")
        if indices and not 0 <= min(indices) <= max(indices) < len(table):  # type: ignore[arg-type]
            raise ValueError("trainable_token_indices lie outside of the vocabulary")
        put(model, ours[0], name, Rows(torch.tensor(indices, device=values.device), values))
        return
    put_copy(model, ours, name)
    adapters = [model.network.get_submodule(our).adapters[name] for our in ours]  # type: ignore[index]
    for leaf, tensor in parts.items():
        targets = [getattr(adapter, leaf) for adapter in adapters]
        if any(t is None for t in targets) or tensor.shape[0] != sum(len(t) for t in targets):
            raise ValueError(f"its {leaf} {list(tensor.shape)} does not fit the model")
        for target, part in zip(targets, tensor.split([len(t) for t in targets]), strict=True):
            if target.shape != part.shape:
                raise ValueError(f"its {leaf} {list(tensor.shape)} does not fit the model")
            target.data = part.clone()


def _put_virtual(model: Model, path: Path, name: str, stored: StoredConfig, tensors: Mapping[str, Tensor]) -> int:
    if set(tensors) != {"prompt_embeddings"}:
        raise FormatError(path, TENSORS, f"holds {', '.join(sorted(tensors)) or 'nothing'}, not prompt_embeddings")
    rows = tensors["prompt_embeddings"]
    if rows.ndim != 2 or rows.shape[0] != stored.config.virtual_tokens:
        raise FormatError(path, "prompt_embeddings", f"is {list(rows.shape)}, and its configuration says "
                                f"{stored.config.virtual_tokens} virtual tokens")  # fmt: skip
    if stored.config.kind == "prompt":
        put_virtual(model.decoder, switch_of(model), name, PromptTokens(rows))
        return 1
    shape = prefix_shape(model.decoder)
    if rows.shape[1] != shape[0] * shape[1] * shape[2]:
        raise FormatError(path, "prompt_embeddings", f"has width {rows.shape[1]}, and this model needs {list(shape)}")
    put_virtual(model.decoder, switch_of(model), name, PrefixTokens(rows.unflatten(1, shape)))
    return 1
