"""Which tensor gets which type: the mixes Q2_K … Q6_K with their _S, _M and _L, as llama-quantize decides.

Attention's values and the way down of the feed-forward part are worth more bits, in some layers more than in others;
tied embeddings are the output matrix too. Rows that blocks of 256 do not divide fall back to a type with blocks of 32,
and to F16 where even those do not. Source: llama.cpp's src/llama-quant.cpp llama_tensor_get_type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.formats.gguf.types import TYPES

# name: (general.file_type, the type of most tensors)
MIXES: dict[str, tuple[int, str]] = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q8_0": (7, "Q8_0"),
    "Q6_K": (18, "Q6_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_1": (9, "Q5_1"),
    "Q5_0": (8, "Q5_0"),
    "Q4_K_M": (15, "Q4_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_1": (3, "Q4_1"),
    "Q4_0": (2, "Q4_0"),
    "IQ4_NL": (25, "IQ4_NL"),
    "IQ4_XS": (30, "IQ4_XS"),
    "Q3_K_L": (13, "Q3_K"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_S": (11, "Q3_K"),
    "Q2_K": (10, "Q2_K"),
    "Q2_K_S": (21, "Q2_K"),
}
NEAREST = "NEAREST"
"""Not a mix: what a quantised folder has in codes becomes the type that holds these, and the rest stays in floats."""
_SHORT = {"Q2_K_M": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Traits:
    """What the choice depends on, besides a tensor's name and place."""

    num_layers: int
    queries_per_head: int = 1
    """Query heads that share a key/value head."""
    num_experts: int = 0
    tied: bool = False
    """No output matrix of its own."""
    has_importance: bool = False
    is_70b: bool = False
    """Llama of 80 layers with shared heads, whose value matrices are an eighth of the query's."""


def mix_named(name: str) -> str:
    """The mix called `name`, in any case; UsageError names the near ones."""
    found = name.upper()
    found = _SHORT.get(found, found)
    if found not in (*MIXES, NEAREST):
        raise UsageError(f"type {name!r} is not known{did_you_mean(found, MIXES)}; known: {', '.join(MIXES)}, nearest")
    return found


def tensor_types(
    mix: str, shapes: Mapping[str, tuple[int, ...]], traits: Traits, stored: Mapping[str, str] | None = None
) -> dict[str, str]:
    """GGUF name -> type for every tensor; ``stored`` has those that a file keeps in another form than F32.

    The names are walked as llama.cpp walks them, for a mix counts the value and down matrices it has met.
    """
    stored = stored or {}
    types: dict[str, str] = {}
    values = 0
    for name in sorted(shapes, key=_place):
        if not quantisable(name, shapes[name]):
            types[name] = stored.get(name, "F32")
            continue
        default = MIXES[mix][1]
        if default not in _FLOATS:
            default = _chosen(mix, default, name, shapes[name][-1], values, traits)
            values += _part(name) == "attn_v"
        types[name] = fitting(default, shapes[name][-1])
    return {name: types[name] for name in shapes}


def quantisable(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices, but neither norms nor routers nor tables of positions."""
    kept = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight")
    return len(shape) > 1 and name.endswith("weight") and not name.endswith(kept) and not name.startswith("rope_")


def fitting(type: str, columns: int) -> str:
    """The type, or what stands in for it where rows of `columns` values do not divide into its blocks."""
    if columns % TYPES[type].block == 0:
        return type
    other = _FALLBACK.get(type, "F16")
    return other if columns % TYPES[other].block == 0 else "F16"


def fallbacks(mix: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The matrices that get another type only because blocks of 256 do not divide their rows."""
    block = TYPES[MIXES[mix][1]].block
    return [name for name, shape in shapes.items() if quantisable(name, shape) and shape[-1] % block]


def _place(name: str) -> tuple[int, int, str]:
    """llama.cpp's order: what belongs to no layer, then layer by layer, each by name."""
    found = re.match(r"blk\.(\d+)\.", name)
    return (0, 0, name) if found is None else (1, int(found[1]), name)


def _part(name: str) -> str:
    """The part of a layer that a matrix is, as far as mixes tell them apart."""
    if name in ("output.weight", "token_embd.weight"):
        return name.partition(".")[0]
    leaf = name.rpartition(".weight")[0].rpartition(".")[2]
    if leaf in ("attn_v", "attn_qkv", "attn_kv_b"):
        return "attn_v"  # sensitive alike
    return "ffn_down" if leaf.startswith("ffn_down") else leaf


def _more_bits(number: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third of those between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2


def _chosen(mix: str, default: str, name: str, columns: int, values: int, t: Traits) -> str:
    part = _part(name)
    if part == "output" or (t.tied and part == "token_embd"):
        if columns % TYPES[default].block:
            return "Q8_0"
        return default if default == "Q8_0" else "Q6_K"
    if part == "attn_v":
        return _value_type(mix, default, values, t)
    if part == "attn_k" and t.num_experts == 8:
        return "Q8_0"
    if part == "ffn_down":
        return _down_type(mix, default, _place(name)[1], t)
    if part == "attn_output":
        return _output_type(mix, default, t)
    return default


def _value_type(mix: str, default: str, number: int, t: Traits) -> str:
    shared = t.queries_per_head >= 4
    if mix == "Q2_K":
        default = "Q4_K" if shared else "Q3_K"
    elif mix == "Q2_K_S" and shared:
        default = "Q4_K"
    elif mix == "Q3_K_M":
        default = "Q5_K" if number < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and shared):
        default = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(number, t.num_layers):
        default = "Q6_K"
    elif mix == "Q4_K_S" and number < 4:
        default = "Q5_K"
    if t.is_70b and default in ("Q3_K", "Q4_K"):
        default = "Q5_K"
    return "Q8_0" if t.num_experts == 8 else default


def _down_type(mix: str, default: str, layer: int, t: Traits) -> str:
    early = layer < t.num_layers // 8
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q2_K_S" and early:
        return "Q4_K"
    if mix == "Q3_K_M":
        return "Q5_K" if layer < t.num_layers // 16 else "Q4_K"
    if mix == "Q3_K_L":
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, t.num_layers) else default
    if mix == "Q4_K_S" and early:
        return "Q5_K"
    if mix in ("IQ4_NL", "IQ4_XS") and early and not t.has_importance:
        return "Q5_K"
    if mix in ("Q4_0", "Q5_0") and early and t.has_importance:
        # ggml's guard against what importances can do to the first of these without a minimum
        return "Q4_1" if mix == "Q4_0" else "Q5_1"
    return default


def _output_type(mix: str, default: str, t: Traits) -> str:
    if t.num_experts == 8:
        few = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if mix in few else default
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, default)


def reads_importance(mix: str) -> bool:
    """Whether an importance matrix changes what is written: floats, Q8_0 and codes that stay search for nothing."""
    return mix not in (*_FLOATS, "Q8_0", NEAREST)


def needs_importance(mix: str, types: Iterable[str]) -> bool:
    """Q2_K_S has matrices of two bits that are no good without importances; llama-quantize refuses them too."""
    return mix == "Q2_K_S" and "Q2_K" in types
