"""Scales of keys and values that a model's folder brings along, so that a cache may keep them in 8 bits.

As compressed-tensors has them: ``kv_cache_scheme`` in the configuration, and for every layer ``k_scale`` and
``v_scale`` beside the projections, a scale for each key/value head ([K, 1, 1], strategy ``attn_head``) or one for all
([1], strategy ``tensor``). vLLM reads the FP8 ones and refuses int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenmill.core.errors import ConfigError, FormatError

Kind = Literal["int8", "fp8"]
MOST = {"int8": 127.0, "fp8": 448.0}
"""The largest number that a kind holds."""
STRATEGIES = {"int8": "attn_head", "fp8": "tensor"}
"""What is written; FP8 by tensor because every backend of vLLM has that."""
SUFFIXES = (".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point")


@dataclass(frozen=True)
class CacheScales:
    """A cached number is its code times its head's scale."""

    kind: Kind
    keys: tuple[Tensor, ...]
    """By layer: float32 [K], or [1] for all heads."""
    values: tuple[Tensor, ...]


def scheme(kind: Kind) -> dict[str, Any]:
    """``kv_cache_scheme`` of what is written."""
    return {
        "num_bits": 8,
        "type": "int" if kind == "int8" else "float",
        "symmetric": True,
        "strategy": STRATEGIES[kind],
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def kind_of(given: Mapping[str, Any] | None, source: str) -> Kind | None:
    """What a ``kv_cache_scheme`` asks for; ConfigError for what is not understood."""
    if given is None:
        return None
    kinds: dict[str, Kind] = {"int": "int8", "float": "fp8"}
    kind = kinds.get(str(given.get("type")))
    even = given.get("symmetric", True) and not given.get("dynamic")
    if kind is None or given.get("num_bits") != 8 or not even or given.get("strategy") not in ("tensor", "attn_head"):
        raise ConfigError(
            f"{source}: a cache as {dict(given)!r:.200} is not supported: 8 bits, symmetric, with a scale a head or "
            "one for all, are"
        )
    return kind


def written(scales: CacheScales, layer: int, attention: str) -> dict[str, Tensor]:
    """A layer's scales under their names in the file; ``attention`` is what holds its projections there."""
    shape = (1,) if STRATEGIES[scales.kind] == "tensor" else (-1, 1, 1)
    parts = {"k_scale": scales.keys[layer], "v_scale": scales.values[layer]}
    return {f"{attention}.{name}": scale_K.float().reshape(shape) for name, scale_K in parts.items()}


def read(stored: Mapping[str, Tensor], kind: Kind, attentions: Mapping[str, int], source: Any) -> CacheScales:
    """From the tensors of a file by name. ``attentions``: number of key/value heads by what holds the projections, in
    the order of layers. FormatError where a scale is missing, is no positive number or has another shape."""
    sides: dict[str, list[Tensor]] = {"k": [], "v": []}
    for attention, heads in attentions.items():
        for side, found in sides.items():
            name = f"{attention}.{side}_scale"
            if name not in stored:
                raise FormatError(source, name, "kv_cache_scheme asks for it, and it is not there")
            scale_K = stored[name].float().reshape(-1)
            if len(scale_K) not in (1, heads) or not bool((torch.isfinite(scale_K) & (scale_K > 0)).all()):
                raise FormatError(source, name, f"{scale_K.tolist()!r:.100} are no scales of {heads} heads")
            zero = stored.get(f"{attention}.{side}_zero_point")
            if zero is not None and bool(zero.float().any()):
                raise FormatError(source, f"{attention}.{side}_zero_point", "must be zero in a symmetric cache")
            found.append(scale_K)
    return CacheScales(kind, tuple(sides["k"]), tuple(sides["v"]))
