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
LEAST_THETA = 2.0  # the base of a power whose logarithm is divided by
_ALIASES = {"su": "longrope"}  # Phi-3's first name for it


def read_rope(r: ConfigReader, head_dim: int, *, theta: float = 10000.0, layer_type: str | None = None) -> RopeConfig:
    """``theta``: the family's default. ``layer_type`` picks one of nested settings, as Gemma 3 has them."""
    max_position = r.integer("max_position_embeddings", 2048)
    given: Any = r.get("rope_parameters") or r.get("rope_scaling") or {}
    r.get("rope_scaling")  # asked for even where rope_parameters decides: both are understood
    if isinstance(given, Mapping) and layer_type is not None and layer_type in given:
        given = given[layer_type] or {}
    if not isinstance(given, Mapping):
        r.problem(f"rope settings must be an object, not {given!r}")
        given = {}
    settings = r.part(given)
    theta = settings.number("rope_theta", r.number("rope_theta", theta, least=LEAST_THETA), least=LEAST_THETA)
    part = settings.number(
        "partial_rotary_factor", r.number("partial_rotary_factor", 1.0, least=0, most=1), least=0, most=1
    )
    dim = int(head_dim * part)
    if dim < 2 or dim % 2:
        r.problem(f"{dim} of {head_dim} head features cannot be rotated: an even number from 2 on is needed")
        dim = 2
    return RopeConfig(dim, theta, _scaling(r, settings, dim, max_position), max_position)


def _scaling(r: ConfigReader, settings: ConfigReader, dim: int, max_position: int) -> RopeScaling | None:
    # Phi-3 keeps the trained length outside, with and without scaling; it wins where it is given, as in transformers
    outside = r.integer("original_max_position_embeddings", max_position)
    kind = settings.text("rope_type", settings.text("type", "default"))
    kind = _ALIASES.get(kind, kind)
    if kind not in _KEYS:
        r.problem(f"rope type {kind!r} is not supported{did_you_mean(str(kind), _KEYS)}; known: {', '.join(_KEYS)}")
        return None
    for key in settings.config.keys() - _KEYS[kind] - _COMMON:
        r.problem(f"rope setting {key!r} is not understood for type {kind!r}{did_you_mean(key, _KEYS[kind])}")
    if kind == "default":
        return None
    original = settings.integer("original_max_position_embeddings", max_position)
    original = outside if r.get("original_max_position_embeddings") is not None else original
    if original < 2:
        r.problem(f"'original_max_position_embeddings' must be 2 or more for rope type {kind!r}, not {original}")
        return None
    values: dict[str, Any] = {"factor": settings.number("factor", max_position / original, least=1e-6, most=1e6)}
    for name in _KEYS[kind] - {"factor", "original_max_position_embeddings"}:
        if name in ("short_factor", "long_factor"):
            values[name] = _factors(r, name, settings.get(name), dim)
        elif name == "truncate":
            values[name] = settings.flag(name, True)
        elif settings.get(name) is not None:
            values[name] = settings.number(name, least=0 if name.startswith("mscale") else 1e-6, most=1e6)
    if values.get("low_freq_factor", 1.0) >= values.get("high_freq_factor", 4.0):
        r.problem("rope setting 'high_freq_factor' must be greater than 'low_freq_factor'")
    if kind == "dynamic":
        original = 0  # dynamic NTK counts from max_position_embeddings
    return RopeScaling(kind=kind, original_max_position=original, **values)  # type: ignore[arg-type]  # one of _KEYS


def _factors(r: ConfigReader, name: str, given: Any, dim: int) -> tuple[float, ...]:
    good = isinstance(given, list) and len(given) == dim // 2
    if not good or not all(isinstance(f, int | float) and 0 < f < 1e6 for f in given):
        r.problem(f"longrope's {name!r} must be a list of {dim // 2} numbers above 0")
        return (1.0,) * (dim // 2)
    return tuple(float(value) for value in given)
