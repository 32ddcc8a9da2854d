"""Rotary settings of a ``config.json``, old spelling and new, to a :class:`~tokenmill.nn.config.RopeConfig`.

Old: ``rope_theta`` and ``rope_scaling`` beside each other. New (transformers 5): one ``rope_parameters``, which may be
nested by layer type. Field names and defaults: transformers ``modeling_rope_utils``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.core.errors import did_you_mean
from tokenmill.models.config_reader import ConfigReader
from tokenmill.nn.config import RopeConfig, RopeScaling

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}
_ALIASES = {"su": "longrope"}  # Phi-3's first name for it


def read_rope(r: ConfigReader, head_dim: int, *, theta: float = 10000.0, layer_type: str | None = None) -> RopeConfig:
    """``theta``: the family's default. ``layer_type`` picks one of nested settings, as Gemma 3 has them."""
    max_position = r.integer("max_position_embeddings", 2048)
    settings: Any = r.get("rope_parameters") or r.get("rope_scaling") or {}
    r.get("rope_scaling")  # asked for even where rope_parameters decides: both are understood
    if layer_type is not None and layer_type in settings:
        settings = settings[layer_type] or {}
    if not isinstance(settings, Mapping):
        r.problem(f"rope settings must be an object, not {settings!r}")
        settings = {}
    theta = settings.get("rope_theta") or r.number("rope_theta", theta)
    part = settings.get("partial_rotary_factor") or r.number("partial_rotary_factor", 1.0)
    dim = int(head_dim * part)
    if dim < 2 or dim % 2 or dim > head_dim:
        r.problem(f"{dim} of {head_dim} head features cannot be rotated: an even number from 2 on is needed")
        dim = 2
    return RopeConfig(dim, float(theta), _scaling(r, settings, dim, max_position), max_position)


def _scaling(r: ConfigReader, settings: Mapping[str, Any], dim: int, max_position: int) -> RopeScaling | None:
    kind = settings.get("rope_type", settings.get("type", "default"))
    kind = _ALIASES.get(kind, kind)
    if kind not in _KEYS:
        r.problem(f"rope type {kind!r} is not supported{did_you_mean(str(kind), _KEYS)}; known: {', '.join(_KEYS)}")
        return None
    for key in settings.keys() - _KEYS[kind] - _COMMON:
        r.problem(f"rope setting {key!r} is not understood for type {kind!r}{did_you_mean(key, _KEYS[kind])}")
    if kind == "default":
        return None
    values = {key: value for key, value in settings.items() if key in _KEYS[kind] and value is not None}
    # Phi-3 keeps the trained length outside; where it is given it wins, as in transformers
    outside = r.get("original_max_position_embeddings")
    original = int(outside or values.pop("original_max_position_embeddings", max_position))
    values.pop("original_max_position_embeddings", None)
    for name in ("short_factor", "long_factor"):
        if name in _KEYS[kind]:
            values[name] = _factors(r, name, values.get(name), dim)
    for name, value in values.items():
        if not isinstance(value, (int, float, tuple)):
            r.problem(f"rope setting {name!r} must be a number, not {value!r}")
            return None
    values.setdefault("factor", max_position / original)
    if kind == "dynamic":
        original = 0  # dynamic NTK counts from max_position_embeddings
    return RopeScaling(kind=kind, original_max_position=original, **values)


def _factors(r: ConfigReader, name: str, given: Any, dim: int) -> tuple[float, ...]:
    if not isinstance(given, list) or len(given) != dim // 2:
        r.problem(f"longrope's {name!r} must be a list of {dim // 2} numbers")
        return (1.0,) * (dim // 2)
    return tuple(float(value) for value in given)
